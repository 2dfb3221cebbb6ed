/* hf_pipeline.h: what a tokenizer.json does to a text before and behind its model. */
#ifndef SP_TEXT_HF_PIPELINE_H
#define SP_TEXT_HF_PIPELINE_H

#include "format/json.h"
#include "text/internal.h"

typedef struct sp_hf_pipeline {
    bool bytes; /* byte-level BPE, cut into pieces by `stages`; else BPE over characters, with the fields behind them */
    sp_split_stage stages[SP_MAX_SPLIT_STAGES];
    size_t n_stages;
    bool normalises;
    sp_space_prefix space_prefix;
    bool splits_words;
    bool keeps_spaces_late; /* spaces are marked only behind the late added tokens */

    bool has_post_processor;
    sp_string before, after; /* the token that it puts in front of a text, and behind; bytes NULL: none */

    sp_buffer escaped[SP_MAX_SPLIT_STAGES]; /* patterns that are not the file's own words */
} sp_hf_pipeline;

/* Reads "normalizer", "pre_tokenizer" and "post_processor" of tokenizer.json. Strings belong to `root`. What is not known here is
 * SP_ERR_UNSUPPORTED, by name, with the list of what is. sp_hf_pipeline_clear, after a failure too. */
sp_status sp_hf_pipeline_read(sp_hf_pipeline *out, const json_t *root, const char *path);
void sp_hf_pipeline_clear(sp_hf_pipeline *pipeline);

#endif
