/* hf_config.h: config.json in the words of GGUF's metadata. */
#ifndef SP_FORMAT_HF_CONFIG_H
#define SP_FORMAT_HF_CONFIG_H

#include "format/hf_directory.h"
#include "format/hf_families.h"

typedef struct sp_hf_config {
    const sp_hf_family *family;
    json_t *settings; /* config.json's, or its part's that is the language model's, with the family's defaults where it is silent */
    json_t *metadata; /* GGUF key -> integer, real or string */
    json_t *spelling; /* GGUF key -> what config.json calls it */
    float *rope_factors; /* (n_rope_factors) what rope_freqs.weight is in a GGUF file; NULL: none */
    size_t n_rope_factors;
} sp_hf_config;

/* FORMAT: a value of the wrong type. UNSUPPORTED: a family, or a setting of it, that nothing here runs, by name. The fields of *out
 * are for sp_hf_config_clear, also after a failure. */
sp_status sp_hf_config_read(sp_hf_config *out, const sp_hf_directory *directory);
void sp_hf_config_clear(sp_hf_config *config);

/* The number under `key` of an object of config.json; absent or null: *out stays. Integers are numbers. */
sp_status sp_hf_get_real(double *out, const json_t *object, const char *key, const char *path);

/* hf_rope.c: the settings of RoPE, in either of the forms that transformers has written them, into metadata. */
sp_status sp_hf_read_rope(sp_hf_config *config, const char *path);

/* "<architecture>.<gguf>" = value, which is taken; hf is what config.json calls it. */
sp_status sp_hf_config_put(sp_hf_config *config, const char *gguf, json_t *value, const char *hf);

#endif
