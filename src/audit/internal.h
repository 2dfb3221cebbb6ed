/* internal.h: what the files of src/audit share. */
#ifndef SP_AUDIT_INTERNAL_H
#define SP_AUDIT_INTERNAL_H

#include "audit/figures.h"
#include "prompt/task.h"
#include "softprompt.h"
#include "train/scorer.h"

struct sp_audit {
    sp_model *model;
    const sp_prompt *prompt; /* NULL: none */
    sp_audit_options options;
    sp_engine *engine;   /* holds the prompt's keys */
    sp_arena *scratch;   /* of one layer */
    sp_tree tree;        /* the prompt, then the texts that wait */
    size_t prompt_run;   /* SP_NO_RUN: no prompt */
    size_t n_front;      /* the prompt's rows */
    sp_text_rows *texts; /* (texts_capacity) that wait */
    size_t n_texts, texts_capacity;
    size_t *rows; /* (rows_capacity) of a pass */
    size_t rows_capacity;
    sp_head_figures *figures; /* (n_layer, n_head) */
    size_t *ranks;            /* (n_layer, n_head_kv) of the prompt's keys */
    bool ranks_known;
    float soft_cap;         /* of the model's attention, once a text was seen; 0: none */
    sp_audit_head *heads;   /* (n_layer, n_head) */
    sp_audit_token *tokens; /* (n_front); NULL: no prompt */
    sp_audit_report report;
};

/* Makes a->tokens: norms and neighbours of the root's rows. */
sp_status sp_audit_describe_tokens(sp_audit *audit, const sp_root *root);

/* One row as a text: what the model reads of it, context and right answer but for its last token. */
sp_status sp_audit_row(sp_audit *audit, const sp_encoded_row *row);

/* left_out_* of a->tokens, on n rows; 0: nothing happens. */
sp_status sp_audit_leave_out(sp_audit *audit, const sp_root *root, const sp_encoded_row *rows, size_t n, const sp_hooks *hooks);

#endif
