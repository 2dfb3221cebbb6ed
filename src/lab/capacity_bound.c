/* capacity_bound.c: sp_lab_capacity_bound: how many virtual tokens, by formula.
 *
 * Three kinds of number, which must not be taken for each other:
 *   FORMULA  the paper's L lambda: the grid of its own construction. Shorter prompts do the same (TAKES), so it bounds nothing
 *   TAKES    what the constructions of this library take; their own counts, which the builders use
 *   BOUND    what no machine passes, whatever its size: a frozen, deterministic machine cannot answer in more ways than there are
 *            prompts, 2^{precision d L_p} of them
 *
 * All are kept as log2, because grid^{d len} soon leaves f64. Derivations: docs/theory.md, section 2. */
#include <math.h>

#include "base/status.h"
#include "lab/universal.h"

static const double DEFAULT_EPSILON = 0.05, DEFAULT_PRECISION = 32, RAMP = 1.0 / 16;
static const double WHOLE_BELOW_LOG2 = 40; /* beyond, a logarithm in f64 does not tell one whole number from the next */
enum { DEFAULT_SEQUENCES = 64, MAX_NUMBERS = 1 << 20 };

/* ---- options ---- */

static sp_status resolve(sp_capacity_bound_options *o)
{
    if (o->d == 0) o->d = 1;
    if (o->len == 0) o->len = 1;
    if (o->lipschitz == 0) o->lipschitz = 1;
    if (o->alpha == 0) o->alpha = INFINITY;
    if (o->epsilon == 0) o->epsilon = DEFAULT_EPSILON;
    if (o->precision == 0) o->precision = DEFAULT_PRECISION;
    if (o->n_sequences == 0) o->n_sequences = DEFAULT_SEQUENCES;
    if (o->prompt_lipschitz == 0) o->prompt_lipschitz = 1;
    if (o->d > MAX_NUMBERS || o->len > MAX_NUMBERS)
        return sp_fail(SP_ERR_ARGUMENT, "%zu tokens of %zu numbers: at most %d of each are accepted", o->len, o->d, MAX_NUMBERS);
    if (!(o->epsilon > 0 && o->epsilon < 0.5))
        return sp_fail(SP_ERR_ARGUMENT,
                       "an epsilon of %g: give one between 0 and 0.5, where the constant 1/2 is within epsilon of every function",
                       o->epsilon);
    if (!(o->lipschitz > 0 && isfinite(o->lipschitz)) || !(o->alpha >= 1) || !(o->precision >= 1 && isfinite(o->precision)) ||
        !(o->prompt_lipschitz > 0 && isfinite(o->prompt_lipschitz)))
        return sp_fail(
            SP_ERR_ARGUMENT,
            "lipschitz %g, alpha %g, precision %g, prompt_lipschitz %g: give slopes above 0, a norm of at least 1, at least 1 bit",
            o->lipschitz, o->alpha, o->precision, o->prompt_lipschitz);
    return SP_OK;
}

/* The largest ||x||_alpha of x with |x_i| <= 1, and so what a slope in one norm may be in the other. */
static double norm_ratio(const sp_capacity_bound_options *o)
{
    return pow((double)o->d * (double)o->len, 1 / o->alpha); /* 1 / infinity is 0 */
}

static double round_up(double log2_tokens)
{
    if (log2_tokens >= WHOLE_BELOW_LOG2) return exp2(log2_tokens);
    return fmax(1, ceil(exp2(log2_tokens) * (1 - 1e-13))); /* a whole number's log2, and back, may lie above it */
}

/* ---- the paper ---- */

static void write_paper(sp_capacity_row *row, const sp_capacity_bound_options *o)
{
    double n = (double)o->d * (double)o->len;
    row->log2_tokens = log2((double)o->len) + n * log2(2 * o->lipschitz * norm_ratio(o) / o->epsilon);
    row->num_virtual_tokens = exp2(row->log2_tokens);
    row->log2_bits = NAN;
}

/* ---- what the constructions take ---- */

/* The output of the look-up is a mean of values of cells at most (delta + w) / 2 away, in every coordinate, so its error in the
 * norm alpha is C times that distance's norm. The others pick each coordinate by itself: an error in the sup norm, which is then
 * made one of the norm alpha. */
static sp_status choose_grid(sp_universal_shape *shape, sp_construction construction, const sp_capacity_bound_options *o)
{
    double slope = o->lipschitz * norm_ratio(o), epsilon = construction == SP_LOOKUP ? o->epsilon : o->epsilon / norm_ratio(o);
    double ramp =
        construction == SP_INDEX ? 0 : RAMP; /* INDEX makes its ramps as narrow as it likes, and promises nothing on them */
    *shape = (sp_universal_shape){.d = o->d, .len = o->len, .ramp = ramp};
    shape->grid = sp_universal_grid_for(construction, slope, ramp, epsilon);
    if (shape->grid) return SP_OK;
    return sp_fail(SP_ERR_ARGUMENT, "an error of %g for functions of slope %g takes a grid beyond 2^62; allow a larger one",
                   o->epsilon, o->lipschitz);
}

static sp_status write_taken(sp_capacity_row *row, sp_construction construction, const sp_capacity_bound_options *o)
{
    sp_universal_shape shape;
    sp_status st = choose_grid(&shape, construction, o);
    if (st) return st;
    row->grid = shape.grid;
    row->log2_bits = NAN;
    row->num_virtual_tokens = (double)o->len * exp2((double)o->d * (double)o->len * (double)sp_log2(shape.grid));
    row->log2_tokens = sp_universal_table_log2(&shape);
    if (construction == SP_DIGITS) {
        row->num_virtual_tokens = 1;
        row->log2_tokens = 0;
        row->log2_bits = sp_universal_digits_log2_bits(&shape);
    }
    if (construction == SP_INDEX) {
        row->num_virtual_tokens = (double)sp_universal_index_tokens(&shape, sp_n_target_functions);
        row->log2_tokens = log2(row->num_virtual_tokens);
        row->log2_bits = log2(sp_universal_index_bits(&shape, sp_n_target_functions));
    }
    return SP_OK;
}

/* ---- what no machine passes ---- */

static void write_bound(sp_capacity_row *row, double log2_bits, double log2_bits_of_token)
{
    row->log2_bits = log2_bits;
    row->log2_tokens = log2_bits - log2_bits_of_token;
    row->num_virtual_tokens = round_up(row->log2_tokens);
}

static double log2_bits_of_token(const sp_capacity_bound_options *o)
{
    return log2((double)o->d) + log2(o->precision);
}

/* Points that fit into [0, 1] more than `apart` apart. */
static double count_apart(double apart)
{
    return ceil(1 / apart);
}

/* Bumps of height h > epsilon and slope C around m^n centres, m a coordinate, 2 h / C apart, up or down from 1/2: whichever are
 * chosen, the function is C-Lipschitz, and two choices differ by 2 h > 2 epsilon at some centre, so no answer is right for both. In
 * the sup norm each of the n outputs has bumps of its own. In another norm one output has; or each bump chooses one of 2 n
 * directions
 * +-h e_k, which differ by 2^{1/alpha} h, of which more than 2 epsilon is asked. */
static void write_functions(sp_capacity_row *row, const sp_capacity_bound_options *o)
{
    double n = (double)o->d * (double)o->len, m = count_apart(2 * o->epsilon / o->lipschitz);
    double log2_bits = n * log2(m) + (isinf(o->alpha) ? log2(n) : 0);
    double h = 2 * o->epsilon / exp2(1 / o->alpha);
    if (!isinf(o->alpha) && h < 0.5) log2_bits = fmax(log2_bits, n * log2(count_apart(2 * h / o->lipschitz)) + log2(log2(2 * n)));
    write_bound(row, log2_bits, log2_bits_of_token(o));
}

/* Each of N d len numbers is one of ceil(1 / (2 epsilon)) values that are more than 2 epsilon apart. */
static double log2_pair_bits(const sp_capacity_bound_options *o, double apart)
{
    double n = (double)o->n_sequences * (double)o->d * (double)o->len;
    return log2(n) + log2(log2(count_apart(apart)));
}

static void write_pairs(sp_capacity_row *row, const sp_capacity_bound_options *o)
{
    write_bound(row, log2_pair_bits(o, 2 * o->epsilon), log2_bits_of_token(o));
}

/* Prompts whose numbers agree to 1 / cells answer within G / cells of each other, so for answers 2 epsilon + G / cells apart they
 * count as one, and a number of the prompt has log2(cells) bits, however exact it is. The best of a few cells is taken. */
static void write_smooth(sp_capacity_row *row, const sp_capacity_bound_options *o)
{
    double best = -INFINITY;
    for (int k = -8; k <= 24; k++) {
        double cells = ceil(o->prompt_lipschitz / o->epsilon * exp2(k / 4.0)), apart = 2 * o->epsilon + o->prompt_lipschitz / cells;
        if (!(cells >= 2) || apart >= 1) continue;
        double log2_bits = log2_pair_bits(o, apart), log2_tokens = log2_bits - log2((double)o->d) - log2(log2(cells));
        if (log2_tokens <= best) continue;
        best = log2_tokens;
        write_bound(row, log2_bits, log2((double)o->d) + log2(log2(cells)));
    }
    if (best > -INFINITY) return;
    *row = (sp_capacity_row){.name = row->name, .kind = row->kind, .formula = row->formula, .assumption = row->assumption};
    row->log2_tokens = row->log2_bits = -INFINITY;
}

/* ---- all of them ---- */

static const sp_capacity_row texts[SP_CAPACITY_N_ROWS] = {
    [SP_CAPACITY_PAPER] = {.name = "paper",
                           .kind = SP_CAPACITY_FORMULA,
                           .formula = "L (2 C (dL)^{1/alpha} / epsilon)^{dL}",
                           .assumption = "the grid of the paper's own proof; lookup passes it, so it is no lower bound"},
    [SP_CAPACITY_TAKES_LOOKUP] = {.name = "lookup",
                                  .kind = SP_CAPACITY_TAKES,
                                  .formula = "L grid^{dL}",
                                  .assumption = "every function; one attention layer for L = 1, else two"},
    [SP_CAPACITY_TAKES_UNIFORM] = {.name = "uniform",
                                   .kind = SP_CAPACITY_TAKES,
                                   .formula = "L grid^{dL}",
                                   .assumption = "every function; one attention layer, as wide as the prompt is long"},
    [SP_CAPACITY_TAKES_DIGITS] = {.name = "digits",
                                  .kind = SP_CAPACITY_TAKES,
                                  .formula = "1, of L grid^{dL} log2(2 grid + 1) + 3 bits",
                                  .assumption = "every function; its numbers have these bits, whatever the precision given"},
    [SP_CAPACITY_TAKES_INDEX] = {.name = "index",
                                 .kind = SP_CAPACITY_TAKES,
                                 .formula = "log(functions) / log(grid^d)",
                                 .assumption = "only the 8 functions that are built in, and off the ramps"},
    [SP_CAPACITY_COUNT_FUNCTIONS] = {.name = "functions",
                                     .kind = SP_CAPACITY_BOUND,
                                     .formula = "bits of the packing number / (d precision)",
                                     .assumption = "one frozen machine of any size, every C-Lipschitz function within epsilon"},
    [SP_CAPACITY_COUNT_PAIRS] = {.name = "pairs",
                                 .kind = SP_CAPACITY_BOUND,
                                 .formula = "N d L log2(ceil(1 / (2 epsilon))) / (d precision)",
                                 .assumption = "one frozen machine of any size, every set of N answers within epsilon"},
    [SP_CAPACITY_COUNT_SMOOTH] = {.name = "smooth",
                                  .kind = SP_CAPACITY_BOUND,
                                  .formula = "N d L log2(ceil(1 / (2 epsilon + G/k))) / (d log2(k))",
                                  .assumption = "as pairs, of any precision, if the machine is G-Lipschitz in its prompt"},
};

sp_status sp_lab_capacity_bound(sp_capacity_bound_report *out, const sp_capacity_bound_options *options)
{
    static const sp_capacity_bound_options defaults;
    *out = (sp_capacity_bound_report){.options = options ? *options : defaults};
    sp_capacity_bound_options *o = &out->options;
    sp_status st = resolve(o);
    if (st) return st;
    for (size_t i = 0; i < SP_CAPACITY_N_ROWS; i++) out->rows[i] = texts[i];
    write_paper(&out->rows[SP_CAPACITY_PAPER], o);
    if ((st = write_taken(&out->rows[SP_CAPACITY_TAKES_LOOKUP], SP_LOOKUP, o))) return st;
    if ((st = write_taken(&out->rows[SP_CAPACITY_TAKES_UNIFORM], SP_UNIFORM, o))) return st;
    if ((st = write_taken(&out->rows[SP_CAPACITY_TAKES_DIGITS], SP_DIGITS, o))) return st;
    if ((st = write_taken(&out->rows[SP_CAPACITY_TAKES_INDEX], SP_INDEX, o))) return st;
    write_functions(&out->rows[SP_CAPACITY_COUNT_FUNCTIONS], o);
    write_pairs(&out->rows[SP_CAPACITY_COUNT_PAIRS], o);
    write_smooth(&out->rows[SP_CAPACITY_COUNT_SMOOTH], o);
    return SP_OK;
}
