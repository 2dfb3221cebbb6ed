/* queries.h: what a prompt and its teacher are compared on: rows of data, or continuations of its text that the teacher samples.
 *
 * Either way a query is an encoded row with one candidate. Its context is what is only read: BOS, where the model's texts begin
 * with it, and the first token; the candidate is all behind it, of which every token's distribution is compared. */
#ifndef SP_TRAIN_QUERIES_H
#define SP_TRAIN_QUERIES_H

#include "train/encoded.h"
#include "train/teacher.h"

enum { SP_DEFAULT_NUM_QUERIES = 512, SP_DEFAULT_QUERY_LENGTH = 64 };

/* Turns encoded rows into queries, each its context and its right answer. Rows of too few tokens are left out, with a warning.
 * FORMAT: none is left. */
sp_status sp_queries_of_rows(sp_encoded_data *data, const sp_model *model, const sp_logger *logger);

/* Of n queries the last ones are held out, to measure on: an eighth, at most 64. 0 where there are too few. */
size_t sp_queries_n_held_out(size_t n);
sp_status sp_queries_hold_out(sp_encoded_data *held_out, sp_encoded_data *data); /* moves them; held_out is empty before */

/* n continuations of the teacher's text, of `length` >= 2 tokens or up to the model's end token, at temperature 1. None begins with
 * an end token: such a beginning is drawn again. Query i depends on seed and i alone, up to the rounding of other batches.
 * SP_ERR_STOPPED: the hooks said so. ARGUMENT: text and continuation do not fit the model's context. `hooks` may be NULL. */
sp_status sp_queries_sample(sp_encoded_data *out, sp_teacher *teacher, sp_model *model, size_t n, size_t length, uint64_t seed,
                            const sp_hooks *hooks);

/* A JSON object a line: the tokens, without BOS, and what they say. Loading gives what was saved; FORMAT: the file does not hold n
 * queries of at most `length` tokens. */
sp_status sp_queries_save(const sp_encoded_data *data, const sp_model *model, const char *path);
sp_status sp_queries_load(sp_encoded_data *out, const sp_model *model, const char *path, size_t n, size_t length);

#endif
