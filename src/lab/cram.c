/* cram.c: the longest text that a few learnt vectors make the model say by greedy decoding.
 *
 *   BOS, vector (root) -- text 1        A sample is a root of its own: a frozen row, on which attention rests, and the vectors.
 *   BOS, vector (root) -- text 2        All samples are one token tree, so a step of all is one forward and one backward.
 *
 * The target of a sample is the beginning of its text. When the model says all of it, it grows and the vectors go on from where
 * they are (progressive cramming). What counts is the longest beginning that was ever said without an error: of any step, whether
 * the target was reached or not.
 *
 * The loss is the mean of w_t * -ln p_t over the target's tokens, w_t = (1 - p_t)^2 + FLOOR, p_t as the pass before found it:
 * greedy decoding wants every token to be the likeliest, and none to be certain, so those that are wrong take the gradient
 * (docs/decisions/0018).
 *
 * With a model loaded for bf16, steps are taken in bf16, and what they seem to reach is looked at again in f32 before it counts.
 *
 * Cost: a step computes (1 + num_virtual_tokens + target) rows a sample, each with its logits. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/sizes.h"
#include "base/status.h"
#include "lab/crammer.h"

enum {
    DEFAULT_SAMPLES = 4,
    DEFAULT_STEPS = 1000,
    TEXT_TOKENS = 192, /* a text is cut to as many for each vector */
    FIRST_TARGET = 8,  /* learning begins with as many, however many vectors there are, */
    SECOND_TARGET = 2, /* vectors that begin anew with as many, */
    GROWTH = 2,        /* and goes on by as many for each vector, at most to twice as many */
    INIT_TOKENS = 8,
    SILENCE = 100,  /* steps in which something is said, */
    PATIENCE = 150, /* and in which the first target is learnt, or the vectors begin anew */
    MAX_PASS_SAMPLES = 64
};

static const double DEFAULT_RATE = 0.1;
static const double BETA1 = 0.9, BETA2 = 0.99; /* a shorter memory than Adam's usual: the target changes every few steps */
static const float FLOOR = 0.02f;              /* what a certain token still counts, so that it stays so */

/* ---- beginning and end ---- */

static void free_crammer(sp_crammer *c)
{
    for (size_t i = 0; c->samples && i < c->options.n_samples; i++) {
        free(c->samples[i].text.tokens);
        free(c->samples[i].best_rows);
        free(c->samples[i].doubts);
        free(c->samples[i].weights);
        sp_prompt_free(c->samples[i].prompt);
        sp_optimizer_free(c->samples[i].optimizer);
    }
    free(c->samples);
    free(c->roots);
    free(c->items);
    free(c->active);
    free(c->gradient);
    sp_scorer_free(c->scorer);
    sp_unlock(c->lock);
}

static sp_cram_options with_defaults(const sp_cram_options *given)
{
    sp_cram_options o = given ? *given : (sp_cram_options){0};
    if (!o.num_virtual_tokens) o.num_virtual_tokens = 1;
    if (!o.n_samples) o.n_samples = DEFAULT_SAMPLES;
    if (!o.steps) o.steps = DEFAULT_STEPS;
    if (!(o.learning_rate > 0)) o.learning_rate = DEFAULT_RATE;
    return o;
}

/* Each vector starts as the mean embedding of a few of the first tokens; of the next ones, when it begins anew. */
static sp_status init_vectors(sp_cram_learner *s, const sp_crammer *c)
{
    float *rows = sp_prompt_embeddings(s->prompt) + c->d, *embeddings = malloc(INIT_TOKENS * c->d * sizeof *embeddings);
    sp_status st = embeddings ? SP_OK : sp_fail_no_memory(INIT_TOKENS * c->d * sizeof *embeddings);
    for (size_t v = 0; v < c->options.num_virtual_tokens && !st; v++, rows += c->d) {
        const size_t first = (v + s->n_begun * c->options.num_virtual_tokens) * INIT_TOKENS % s->text.n, left = s->text.n - first,
                     n = left < INIT_TOKENS ? left : INIT_TOKENS;
        if ((st = sp_model_embed(embeddings, c->model, s->text.tokens + first, n))) break;
        for (size_t i = 0; i < c->d; i++) {
            double sum = 0;
            for (size_t t = 0; t < n; t++) sum += embeddings[t * c->d + i];
            rows[i] = (float)(sum / (double)n);
        }
    }
    free(embeddings);
    return st;
}

/* What a token of this loss counts, beside others of the target. */
static float doubt(double nll)
{
    const float wrong = 1 - (float)exp(-nll);
    return wrong * wrong + FLOOR;
}

static sp_status create_optimizer(sp_cram_learner *s)
{
    const sp_weight_shape shape = sp_prompt_shape(s->prompt, 0);
    sp_status st = sp_optimizer_create(&s->optimizer, SP_ADAMW, &shape, 1, 0);
    if (!st) sp_optimizer_set_betas(s->optimizer, BETA1, BETA2);
    return st;
}

/* Some starts never learn even the first token: the later ones, which have a text before them, are easier and lead the vectors
 * elsewhere. So the next start has little but that token to learn. */
static sp_status begin_anew(sp_cram_learner *s, const sp_crammer *c)
{
    s->speaks = false;
    s->target = s->first_target = sp_smaller(s->text.n, SECOND_TARGET);
    sp_optimizer_free(s->optimizer);
    s->optimizer = NULL;
    s->begun = s->steps;
    s->n_begun++;
    for (size_t k = 0; k < s->text.n; k++) s->doubts[k] = doubt(INFINITY);
    sp_status st = init_vectors(s, c);
    return st ? st : create_optimizer(s);
}

static sp_status init_sample(sp_cram_learner *s, const sp_crammer *c)
{
    const sp_prompt_options options = {.num_virtual_tokens = c->n_rows, .sink = SP_SINK_BOS, .seed = c->options.seed};
    sp_status st = sp_prompt_create(&s->prompt, c->model, &options);
    if (!st) st = init_vectors(s, c);
    if (st) return st;
    s->target = s->first_target = sp_smaller(s->text.n, FIRST_TARGET);
    s->best_rows = malloc(c->n_rows * c->d * sizeof *s->best_rows);
    s->weights = malloc(s->text.n * sizeof *s->weights);
    s->doubts = malloc(s->text.n * sizeof *s->doubts);
    if (!s->best_rows || !s->weights || !s->doubts) return sp_fail_no_memory((c->n_rows * c->d + s->text.n) * sizeof *s->weights);
    memcpy(s->best_rows, sp_prompt_embeddings(s->prompt), c->n_rows * c->d * sizeof *s->best_rows);
    for (size_t k = 0; k < s->text.n; k++) s->doubts[k] = doubt(INFINITY);
    return create_optimizer(s);
}

static sp_status draw_texts(sp_crammer *c, const sp_dataset *data)
{
    const size_t n = c->options.n_samples, max_tokens = TEXT_TOKENS * c->options.num_virtual_tokens;
    sp_model_info info;
    sp_model_get_info(&info, c->model);
    if (c->n_rows + c->n_context + 2 > info.context_length)
        return sp_fail(SP_ERR_ARGUMENT, "%zu vectors leave no room for a text in the model's context of %zu; use fewer",
                       c->options.num_virtual_tokens, info.context_length);
    const size_t room = info.context_length - c->n_rows - c->n_context;
    sp_cram_text *texts = malloc(n * sizeof *texts);
    if (!texts) return sp_fail_no_memory(n * sizeof *texts);
    sp_status st =
        sp_cram_texts_draw(texts, n, c->model, data, c->options.kind, max_tokens < room ? max_tokens : room, c->options.seed);
    for (size_t i = 0; i < n && !st; i++) c->samples[i].text = texts[i];
    free(texts);
    return st;
}

static sp_status init_crammer(sp_crammer *c, sp_model *model, const sp_dataset *data, const sp_cram_options *options)
{
    *c = (sp_crammer){
        .model = model, .options = with_defaults(options), .d = sp_model_d_model(model), .begin = sp_seconds(), .lock = -1};
    const size_t n = c->options.n_samples;
    c->n_rows = c->options.num_virtual_tokens + 1;
    c->bos = sp_tokenizer_bos(sp_model_tokenizer(model));
    c->n_context = sp_tokenizer_adds_bos(sp_model_tokenizer(model));
    if (c->options.kind != SP_CRAM_RANDOM && !data) return sp_fail(SP_ERR_ARGUMENT, "no texts to cram; give data");
    c->samples = calloc(n, sizeof *c->samples);
    c->roots = calloc(n, sizeof *c->roots);
    c->items = calloc(n, sizeof *c->items);
    c->active = calloc(n, sizeof *c->active);
    c->gradient = calloc(n * c->n_rows, c->d * sizeof *c->gradient);
    if (!c->samples || !c->roots || !c->items || !c->active || !c->gradient)
        return sp_fail_no_memory(n * c->n_rows * c->d * sizeof *c->gradient);
    sp_status st = sp_scorer_create(&c->scorer, model);
    if (!st) st = draw_texts(c, data);
    for (size_t i = 0; i < n && !st; i++) st = init_sample(&c->samples[i], c);
    return st;
}

/* ---- learning ---- */

static void weigh(sp_cram_learner *s)
{
    double sum = 0;
    for (size_t k = 0; k < s->target; k++) sum += (double)s->doubts[k];
    for (size_t k = 0; k < s->target; k++) s->weights[k] = (float)((double)s->doubts[k] / sum);
}

static void set_active(sp_crammer *c)
{
    c->n_active = 0;
    for (size_t i = 0; i < c->options.n_samples; i++) {
        sp_cram_learner *s = &c->samples[i];
        if (s->is_whole) continue;
        weigh(s);
        c->roots[c->n_active] = sp_root_of_prompt(s->prompt);
        c->items[c->n_active] = (sp_item){&c->bos, s->text.tokens, c->n_context, s->target, c->n_active, s->weights};
        c->active[c->n_active++] = i;
    }
    if (c->n_active) sp_scorer_set_roots(c->scorer, c->roots, c->n_active);
}

/* What was said in bf16, said again in f32: of the pass's samples those that seem to have come further than ever. */
static sp_status confirm(sp_crammer *c, size_t first, size_t n_pass)
{
    sp_item items[MAX_PASS_SAMPLES];
    size_t of[MAX_PASS_SAMPLES], n = 0;
    const double *nll;
    for (size_t i = 0; i < n_pass; i++) {
        if (c->samples[c->active[first + i]].said <= c->samples[c->active[first + i]].best) continue;
        items[n] = c->items[first + i];
        of[n++] = c->active[first + i];
    }
    if (sp_model_compute(c->model) == SP_COMPUTE_F32 || n == 0) return SP_OK;
    sp_model_set_compute(c->model, SP_COMPUTE_F32);
    sp_scorer_set_roots(c->scorer, c->roots, c->n_active); /* their keys are computed anew */
    sp_status st = sp_scorer_score(&nll, c->scorer, items, n);
    for (size_t i = 0; i < n && !st; i++) st = sp_scorer_greedy_prefix(&c->samples[of[i]].said, c->scorer, i);
    sp_model_set_compute(c->model, SP_COMPUTE_BF16);
    sp_scorer_set_roots(c->scorer, c->roots, c->n_active);
    return st;
}

/* What the sample said in the pass that was just computed, before its vectors move. */
static void take_note(const sp_crammer *c, sp_cram_learner *s)
{
    if (s->said > s->best) {
        s->best = s->said;
        memcpy(s->best_rows, sp_prompt_embeddings(s->prompt), c->n_rows * c->d * sizeof *s->best_rows);
    }
    s->speaks |= s->said > 0;
    s->is_whole = s->best == s->text.n;
    if (s->said == s->target)
        s->target = sp_smaller(s->text.n, s->target + sp_smaller(s->target, GROWTH * c->options.num_virtual_tokens));
}

static bool is_hopeless(const sp_cram_learner *s)
{
    const size_t steps = s->steps - s->begun;
    return (!s->speaks && steps == SILENCE) || (s->target == s->first_target && steps == PATIENCE);
}

/* One pass over n_pass samples from `first` on, and a step of each; *loss += the mean loss of each, unweighted. */
static sp_status step_pass(double *loss, sp_crammer *c, size_t first, size_t n_pass)
{
    const double *nll;
    const size_t n_values = c->n_rows * c->d;
    sp_status st = sp_scorer_gradient(&nll, c->gradient, c->scorer, c->items + first, n_pass, 1);
    for (size_t i = 0; i < n_pass && !st; i++) {
        sp_cram_learner *s = &c->samples[c->active[first + i]];
        for (size_t k = 0; k < s->target; k++) {
            *loss += nll[k] / (double)s->target;
            s->doubts[k] = doubt(nll[k]);
        }
        nll += s->target;
        st = sp_scorer_greedy_prefix(&s->said, c->scorer, i);
    }
    if (!st) st = confirm(c, first, n_pass);
    for (size_t i = 0; i < n_pass && !st; i++) {
        sp_cram_learner *s = &c->samples[c->active[first + i]];
        take_note(c, s);
        if (s->is_whole) continue;
        sp_optimizer_step(s->optimizer, sp_prompt_weights(s->prompt), c->gradient + (first + i) * n_values,
                          c->options.learning_rate, ++s->steps - s->begun);
        if (is_hopeless(s)) st = begin_anew(s, c);
    }
    return st;
}

static void report_progress(const sp_crammer *c, const sp_hooks *hooks, double loss)
{
    if (!hooks || !hooks->progress) return;
    size_t tokens = 0;
    for (size_t i = 0; i < c->options.n_samples; i++) tokens += c->samples[i].best;
    const sp_progress progress = {.what = "cram",
                                  .done = c->step,
                                  .total = c->options.steps,
                                  .seconds = sp_seconds() - c->begin,
                                  .loss = loss,
                                  .mean_tokens = (double)tokens / (double)c->options.n_samples};
    hooks->progress(hooks->user, &progress);
}

static bool is_over(const sp_crammer *c)
{
    return c->options.seconds > 0 && sp_seconds() - c->begin > c->options.seconds * (double)c->options.n_samples;
}

static sp_status take_step(sp_crammer *c, const sp_hooks *hooks)
{
    double loss = 0;
    sp_status st = SP_OK;
    memset(c->gradient, 0, c->n_active * c->n_rows * c->d * sizeof *c->gradient);
    for (size_t i = 0, n; i < c->n_active && !st; i += n) {
        n = sp_scorer_fit(c->items + i, sp_smaller(c->n_active - i, MAX_PASS_SAMPLES));
        st = step_pass(&loss, c, i, n);
    }
    if (st) return st;
    c->step++;
    report_progress(c, hooks, loss / (double)c->n_active);
    return SP_OK;
}

/* A state that can not be written now is no reason to lose the search: the last one is still there, and the next may be written. */
static void save_state(sp_crammer *c, const sp_hooks *hooks, bool now)
{
    if (sp_cram_state_save(c, now)) sp_log(hooks ? hooks->logger : NULL, SP_LOG_WARNING, "%s; the search goes on", sp_message());
}

static sp_status learn(sp_crammer *c, const sp_hooks *hooks)
{
    sp_status st = SP_OK;
    while (c->step < c->options.steps && !st && !is_over(c)) {
        if (hooks && hooks->stop && *hooks->stop) {
            save_state(c, hooks, true);
            return sp_fail(SP_ERR_STOPPED, "stopped after %zu of %zu steps; what was found until then is reported", c->step,
                           c->options.steps);
        }
        set_active(c);
        if (!c->n_active) break;
        st = take_step(c, hooks);
        if (!st) save_state(c, hooks, false);
    }
    if (!st) save_state(c, hooks, true);
    return st;
}

sp_status sp_lab_cram(sp_cram_report *out, sp_model *model, const sp_dataset *texts, const sp_cram_options *options,
                      const sp_hooks *hooks)
{
    sp_crammer c;
    const sp_compute compute = sp_model_compute(model);
    *out = (sp_cram_report){0};
    sp_status st = init_crammer(&c, model, texts, options);
    if (!st && c.options.export_dir) st = sp_cram_state_open(&c, hooks ? hooks->logger : NULL);
    if (!st) st = learn(&c, hooks);
    sp_model_set_compute(model, SP_COMPUTE_F32);
    if (!st || st == SP_ERR_STOPPED) st = sp_cram_report_or_fail(out, &c, st);
    sp_model_set_compute(model, compute);
    free_crammer(&c);
    return st;
}
