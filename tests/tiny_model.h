/* tiny_model.h: a llama of two layers with random f32 weights and a byte-level tokenizer, as a GGUF file, for tests of what stands
 * above the engine. Milliseconds a step, everything else as in a real model. */
#ifndef SP_TESTS_TINY_MODEL_H
#define SP_TESTS_TINY_MODEL_H

#include <ggml.h>
#include <gguf.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/rng.h"

enum { TINY_D = 32, TINY_FFN = 48, TINY_HEADS = 4, TINY_KV_HEADS = 2, TINY_LAYERS = 2, TINY_CONTEXT = 192 };
enum { TINY_MERGES = 4, TINY_EOS = 256 + TINY_MERGES, TINY_VOCAB = TINY_EOS + 1 };

/* GPT-2 writes a byte as a printable character: itself, or the n-th of those that are not as U+0100 + n. */
static inline void tiny_byte_token(char out[8], int byte)
{
    int code = byte;
    if (byte <= 0x20)
        code = 0x100 + byte;
    else if (byte >= 0x7f && byte <= 0xa0)
        code = 0x121 + byte - 0x7f;
    else if (byte == 0xad)
        code = 0x143;
    if (code < 0x80)
        snprintf(out, 8, "%c", code);
    else
        snprintf(out, 8, "%c%c", 0xc0 | (code >> 6), 0x80 | (code & 0x3f));
}

static inline void tiny_set_tokenizer(struct gguf_context *g)
{
    static const char *const merges[TINY_MERGES] = {"e r", "i n", "t i", "ti v"};
    static const char *const merged[TINY_MERGES] = {"er", "in", "ti", "tiv"};
    static char bytes[256][8];
    const char *tokens[TINY_VOCAB];
    int32_t types[TINY_VOCAB];
    for (int i = 0; i < TINY_VOCAB; i++) {
        if (i < 256) tiny_byte_token(bytes[i], i);
        tokens[i] = i < 256 ? bytes[i] : i < TINY_EOS ? merged[i - 256] : "<|im_end|>";
        types[i] = i < TINY_EOS ? 1 : 3; /* normal, control */
    }
    gguf_set_val_str(g, "tokenizer.ggml.model", "gpt2");
    gguf_set_val_str(g, "tokenizer.ggml.pre", "gpt-2");
    gguf_set_arr_str(g, "tokenizer.ggml.tokens", tokens, TINY_VOCAB);
    gguf_set_arr_data(g, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, types, TINY_VOCAB);
    gguf_set_arr_str(g, "tokenizer.ggml.merges", (const char **)(uintptr_t)merges, TINY_MERGES);
    gguf_set_val_u32(g, "tokenizer.ggml.bos_token_id", TINY_EOS);
    gguf_set_val_u32(g, "tokenizer.ggml.eos_token_id", TINY_EOS);
    gguf_set_val_bool(g, "tokenizer.ggml.add_bos_token", false);
    gguf_set_val_str(g, "tokenizer.chat_template",
                     "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
                     "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}");
}

static inline void tiny_add(struct gguf_context *g, struct ggml_context *context, sp_rng *rng, const char *name, int64_t n_columns,
                            int64_t n_rows, double deviation)
{
    struct ggml_tensor *t = n_rows ? ggml_new_tensor_2d(context, GGML_TYPE_F32, n_columns, n_rows)
                                   : ggml_new_tensor_1d(context, GGML_TYPE_F32, n_columns);
    ggml_set_name(t, name);
    for (int64_t i = 0; i < ggml_nelements(t); i++)
        ((float *)t->data)[i] = n_rows ? (float)(deviation * sp_rng_normal(rng)) : 1 + 0.1f * (float)sp_rng_normal(rng);
    gguf_add_tensor(g, t);
}

static inline void tiny_add_layer(struct gguf_context *g, struct ggml_context *context, sp_rng *rng, int layer)
{
    static const struct {
        const char *name;
        int n_columns, n_rows;
    } tensors[] = {{"attn_norm", TINY_D, 0},
                   {"attn_q", TINY_D, TINY_D},
                   {"attn_k", TINY_D, TINY_D * TINY_KV_HEADS / TINY_HEADS},
                   {"attn_v", TINY_D, TINY_D * TINY_KV_HEADS / TINY_HEADS},
                   {"attn_output", TINY_D, TINY_D},
                   {"ffn_norm", TINY_D, 0},
                   {"ffn_gate", TINY_D, TINY_FFN},
                   {"ffn_up", TINY_D, TINY_FFN},
                   {"ffn_down", TINY_FFN, TINY_D}};
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        char name[64];
        snprintf(name, sizeof name, "blk.%d.%s.weight", layer, tensors[i].name);
        tiny_add(g, context, rng, name, tensors[i].n_columns, tensors[i].n_rows, 1 / sqrt(tensors[i].n_columns));
    }
}

/* False: it cannot be written. */
static inline bool tiny_model_write(const char *path)
{
    struct gguf_context *g = gguf_init_empty();
    struct ggml_context *context = ggml_init((struct ggml_init_params){.mem_size = 1 << 21});
    sp_rng rng = sp_rng_seed(11, 0);
    gguf_set_val_str(g, "general.architecture", "llama");
    gguf_set_val_str(g, "general.name", "tiny");
    gguf_set_val_u32(g, "llama.block_count", TINY_LAYERS);
    gguf_set_val_u32(g, "llama.embedding_length", TINY_D);
    gguf_set_val_u32(g, "llama.feed_forward_length", TINY_FFN);
    gguf_set_val_u32(g, "llama.attention.head_count", TINY_HEADS);
    gguf_set_val_u32(g, "llama.attention.head_count_kv", TINY_KV_HEADS);
    gguf_set_val_u32(g, "llama.context_length", TINY_CONTEXT);
    gguf_set_val_f32(g, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    gguf_set_val_f32(g, "llama.rope.freq_base", 10000);
    tiny_set_tokenizer(g);
    tiny_add(g, context, &rng, "token_embd.weight", TINY_D, TINY_VOCAB, 0.3);
    for (int layer = 0; layer < TINY_LAYERS; layer++) tiny_add_layer(g, context, &rng, layer);
    tiny_add(g, context, &rng, "output_norm.weight", TINY_D, 0, 0);
    bool written = gguf_write_to_file(g, path, false);
    gguf_free(g);
    ggml_free(context);
    return written;
}

#endif
