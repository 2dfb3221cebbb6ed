/* export.h: a construction as files that other programs run. */
#ifndef SP_LAB_EXPORT_H
#define SP_LAB_EXPORT_H

#include "lab/universal.h"

/* Writes into `dir`, which is made if needed:
 *   model.safetensors   every tensor of the frozen net, f64; the same bytes whatever the prompt (INDEX: whatever prompt of its
 * family) prompt.safetensors  "prompt" (num_virtual_tokens, d), f64, and the function's name run.py              a reader in
 * PyTorch: inputs as JSON on standard input, outputs as JSON on standard output examples.json       {"x": inputs, "y": what the net
 * says of them}, random inputs of this seed IO, MEMORY. */
sp_status sp_universal_export(const char *dir, const sp_universal *universal, const double *prompt, const char *function,
                              uint64_t seed);

#endif
