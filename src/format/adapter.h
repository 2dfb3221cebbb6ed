/* adapter.h: an adapter directory as PEFT writes it, opened and read but not yet understood as a prompt.
 *
 *     adapter_config.json          PEFT's settings
 *     adapter_model.safetensors    the tensors
 *     softprompt.json              ours, where we wrote the directory: task, method details, fingerprint of the model */
#ifndef SP_FORMAT_ADAPTER_H
#define SP_FORMAT_ADAPTER_H

#include "format/json.h"
#include "format/safetensors.h"

#define SP_ADAPTER_CONFIG "adapter_config.json"
#define SP_ADAPTER_TENSORS "adapter_model.safetensors"
#define SP_ADAPTER_OWN "softprompt.json"
#define SP_ADAPTER_COMPILED "SOFTPROMPT_POLYNOMIAL" /* the peft_type of moments, which PEFT does not know */

typedef struct sp_adapter {
    char *config_path, *tensors_path, *own_path; /* for messages */
    json_t *config;
    json_t *own; /* NULL: PEFT's own adapter */
    sp_safetensors *tensors;
    const char *peft_type;  /* never NULL */
    const char *base_model; /* NULL: not given; so are the numbers that are 0 */
    size_t num_virtual_tokens, token_dim, num_layers, num_attention_heads, num_transformer_submodules;
} sp_adapter;

/* IO, FORMAT (a file is damaged, or the directory is no adapter), MEMORY. Any PEFT type opens. */
sp_status sp_adapter_open(sp_adapter **out, const char *dir);
void sp_adapter_close(sp_adapter *adapter);

const char *sp_adapter_method(const char *peft_type); /* our name ("prompt"), or PEFT's where we have none */
bool sp_adapter_is_runnable(const char *peft_type);   /* by this version */

#endif
