/* encoded.h: the rows of a data set as tokens, once for all passes over them. */
#ifndef SP_TRAIN_ENCODED_H
#define SP_TRAIN_ENCODED_H

#include "prompt/task.h"
#include "softprompt.h"
#include "train/scorer.h"

typedef struct sp_encoded_data {
    sp_encoded_row *rows;
    const sp_row **sources; /* (n) what each was made from; the data set's */
    size_t *tasks;          /* (n) whose prompt each stands behind: an item's root; NULL: all behind the first */
    size_t n, n_truncated;
} sp_encoded_data; /* zero-initialise; sp_encoded_data_clear */

/* Every row of `data`, to stand behind n_front rows: the prompt's of the task that it names, one of num_tasks; 0: of the only
 * prompt, whatever it names. Rows that cannot be used (a text of one token, a task that there is not) are left out: the first ten
 * are named by line in warnings, then their number. FORMAT: none is left. */
sp_status sp_encoded_data_create(sp_encoded_data *out, const sp_task *task, const sp_model *model, const sp_dataset *data,
                                 size_t n_front, size_t num_tasks, const sp_logger *logger);
void sp_encoded_data_clear(sp_encoded_data *data);

/* How many tokens of context and answer a prompt of n_virtual rows leaves room for. ARGUMENT: none. */
sp_status sp_room_behind_prompt(size_t *out, const sp_model *model, size_t n_virtual);

/* Candidate `candidate` of row `index` as an item to be scored; borrows the row's tokens. */
sp_item sp_encoded_item(const sp_encoded_data *data, size_t index, size_t candidate);

/* The same of a row alone, behind root 0. */
sp_item sp_item_of(const sp_encoded_row *row, size_t candidate);

#endif
