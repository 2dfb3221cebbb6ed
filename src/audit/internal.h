/* internal.h: what the files of src/audit share. */
#ifndef SP_AUDIT_INTERNAL_H
#define SP_AUDIT_INTERNAL_H

#include "audit/figures.h"
#include "softprompt.h"

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
    float soft_cap;       /* of the model's attention, once a text was seen; 0: none */
    sp_audit_head *heads; /* (n_layer, n_head) */
    sp_audit_report report;
};

#endif
