/* key_meter.h: what queries of texts behind a prompt of keys and values are like, seen from the prompt's keys.
 *
 * Queries are those of every row of the texts that sees one of the prompt's keys, as they enter the product, in all heads of a key
 * head's group. They depend on the prompt: what the layers below read of it moves them. */
#ifndef SP_TRAIN_KEY_METER_H
#define SP_TRAIN_KEY_METER_H

#include "prompt/key_bound.h"
#include "train/encoded.h"

typedef struct sp_key_meter sp_key_meter;

sp_status sp_key_meter_create(sp_key_meter **out, sp_model *model); /* the model must outlive it */
void sp_key_meter_free(sp_key_meter *meter);

/* Of each of the bound's heads (n_layer * n_head_kv); arrays are the caller's, NULL: not wanted. Zero them first. */
typedef struct sp_key_figures {
    double *moments;       /* (n_heads, d_head, d_head) += q q^T, dimensions in PEFT's order */
    float *query_norms;    /* becomes the largest scale |U q|, rounded up */
    double *query_entries; /* becomes the largest entry of U q */
    double *scores;        /* becomes the largest |scale q . (k_j - c)|, c the mean of the prompt's keys */
    double scale;          /* written: what scores are multiplied by */
    size_t n_rows;         /* += tokens read */
} sp_key_figures;

/* Reads rows of `data` (their numbers: rows (n)): context and right answer but for its last token, behind the prompt's keys_values
 * (bound->n_keys, width). In passes of about five hundred tokens; the bytes do not depend on the number of threads. FORMAT: a query
 * is not finite. */
sp_status sp_key_meter_read(sp_key_figures *figures, sp_key_meter *meter, const sp_key_bound *bound, const float *keys_values,
                            const sp_encoded_data *data, const size_t *rows, size_t n);

#endif
