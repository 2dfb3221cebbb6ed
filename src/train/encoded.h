/* encoded.h: the rows of a data set as tokens, once for all passes over them. */
#ifndef SP_TRAIN_ENCODED_H
#define SP_TRAIN_ENCODED_H

#include "prompt/task.h"
#include "softprompt.h"
#include "train/scorer.h"

typedef struct sp_encoded_data {
    sp_encoded_row *rows;
    const sp_row **sources; /* (n) what each was made from; the data set's */
    size_t n, n_truncated;
} sp_encoded_data; /* zero-initialise; sp_encoded_data_clear */

/* Every row of `data`, behind a prompt of n_virtual rows. Rows that cannot be used (a text of one token, say) are left out: the
 * first ten are named by line in warnings, then their number. FORMAT: none is left. */
sp_status sp_encoded_data_create(sp_encoded_data *out, const sp_task *task, const sp_model *model, const sp_dataset *data,
                                 size_t n_virtual, const sp_logger *logger);
void sp_encoded_data_clear(sp_encoded_data *data);

/* How many tokens of context and answer a prompt of n_virtual rows leaves room for. ARGUMENT: none. */
sp_status sp_room_behind_prompt(size_t *out, const sp_model *model, size_t n_virtual);

/* A row's candidate as an item to be scored; borrows the row's tokens. */
sp_item sp_item_of(const sp_encoded_row *row, size_t candidate);

#endif
