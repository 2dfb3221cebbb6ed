/* hf_families.h: how the models of Hugging Face's families become GGUF's words, as data.
 *
 * A family is a row of the table in hf_families.c: what its config.json and its tensors are called, which values of the settings
 * its GGUF architecture stands for, and what transformers takes where the file says nothing. */
#ifndef SP_FORMAT_HF_FAMILIES_H
#define SP_FORMAT_HF_FAMILIES_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

/* What a tensor's numbers are beside GGUF's. All but the first cost a copy. */
typedef enum sp_hf_layout {
    SP_HF_AS_IT_IS,
    SP_HF_PLUS_ONE,   /* a norm's weights, to which the model adds 1: GGUF's have it */
    SP_HF_TRANSPOSED, /* a matrix (n_in, n_out), as gpt2's Conv1D */
    SP_HF_QKV_BY_HEAD /* rows of q, k, v of one head, then of the next: GGUF has all of q, then k, then v */
} sp_hf_layout;

typedef struct sp_hf_name { /* '*' stands for the layer; ".weight" or ".bias" follows in both */
    const char *hf, *gguf;  /* gguf NULL: left out: what the model computes itself */
    sp_hf_layout layout;
} sp_hf_name;

typedef enum sp_hf_kind { SP_HF_SIZE, SP_HF_REAL, SP_HF_CAP /* null is 0: none */, SP_HF_BOOL } sp_hf_kind;

typedef struct sp_hf_setting { /* "<architecture>.<gguf>" gets the value of "hf", unless it is null */
    const char *hf, *gguf;
    sp_hf_kind kind;
} sp_hf_setting;

typedef struct sp_hf_prefix { /* in front of a tensor's name; `to` NULL: the tensor is another model's part */
    const char *from, *to;
} sp_hf_prefix;

enum { SP_HF_MAX_NAME_TABLES = 5 };

typedef enum sp_hf_windows { SP_HF_NO_WINDOWS, SP_HF_ALL_WINDOWS, SP_HF_WINDOWS_BY_LAYER } sp_hf_windows;

typedef struct sp_hf_family {
    const char *model_type;
    const char *architecture;      /* general.architecture */
    const char *part;              /* the member of config.json that is the language model's; NULL: all of it */
    const sp_hf_setting *settings; /* ends with hf NULL, as do tables of names; prefixes end with from NULL */
    const sp_hf_name *names[SP_HF_MAX_NAME_TABLES];
    const sp_hf_prefix *prefixes; /* NULL: none */
    const char *attention_bias; /* the setting that says whether q, k, v and the output have biases; NULL: the architecture knows */
    const char *defaults;       /* JSON: what transformers' configuration class has where config.json has nothing */
    const char *fixed;          /* JSON: the value, or array of values, that a setting may have */
    sp_hf_windows windows;
    bool two_ropes;         /* layers with a window have a RoPE of their own */
    bool learned_positions; /* no RoPE at all */
} sp_hf_family;

/* NULL where no row has that model_type. */
const sp_hf_family *sp_hf_family_find(const char *model_type);

/* "llama, mistral, ...": all that are known, for messages. Returns `out`, which is always terminated. */
const char *sp_hf_family_list(char *out, size_t size);

#endif
