/* test_gguf.c: the GGUF reader against files that ggml's own writer made, against hostile ones, and against every truncation and
 * every flipped bit of a small one. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <gguf.h>
#include <inttypes.h>
#include <math.h>

#include "base/buffer.h"
#include "files.h"
#include "format/gguf.h"

/* ---- a file made by ggml ------------------------------------------------------------------------------------- */

static const char *const words[] = {"", "a", "Ġpositive", "\xff\xfe"};
static const int32_t integers[] = {-5, 0, 1 << 30};
static const float scores[] = {0.5f, -INFINITY, 3};

static void set_values(struct gguf_context *g)
{
    gguf_set_val_str(g, "general.architecture", "llama");
    gguf_set_val_u8(g, "u8", 200);
    gguf_set_val_i8(g, "i8", -100);
    gguf_set_val_u16(g, "u16", 60000);
    gguf_set_val_i16(g, "i16", -30000);
    gguf_set_val_u32(g, "u32", 4000000000u);
    gguf_set_val_i32(g, "i32", 7);
    gguf_set_val_u64(g, "u64", UINT64_MAX);
    gguf_set_val_i64(g, "i64", 1234567890);
    gguf_set_val_f32(g, "f32", 0.25f);
    gguf_set_val_f64(g, "f64", 1e-5);
    gguf_set_val_f64(g, "f64.large", 1e300);
    gguf_set_val_f32(g, "f32.nan", NAN);
    gguf_set_val_bool(g, "bool", true);
    gguf_set_arr_str(g, "words", (const char **)(uintptr_t)words, ARRAY_LEN(words));
    gguf_set_arr_data(g, "integers", GGUF_TYPE_INT32, integers, ARRAY_LEN(integers));
    gguf_set_arr_data(g, "scores", GGUF_TYPE_FLOAT32, scores, ARRAY_LEN(scores));
    gguf_set_arr_data(g, "empty", GGUF_TYPE_UINT8, NULL, 0);
}

static void add_tensor(struct gguf_context *g, struct ggml_context *context, const char *name, enum ggml_type type, int64_t n_cols,
                       int64_t n_rows)
{
    struct ggml_tensor *t = ggml_new_tensor_2d(context, type, n_cols, n_rows);
    ggml_set_name(t, name);
    for (size_t i = 0; i < ggml_nbytes(t); i++) ((uint8_t *)t->data)[i] = (uint8_t)(i * 7 + n_cols);
    gguf_add_tensor(g, t);
}

/* Writes the file and gives its bytes, too. */
static sp_buffer write_with_ggml(const memory_file *file)
{
    struct gguf_context *g = gguf_init_empty();
    struct ggml_context *context = ggml_init((struct ggml_init_params){.mem_size = 1 << 16});
    sp_buffer bytes = {0};
    char block[4096];
    set_values(g);
    add_tensor(g, context, "norm.weight", GGML_TYPE_F32, 5, 1);
    add_tensor(g, context, "blk.0.attn_q.weight", GGML_TYPE_Q4_1, 64, 3);
    add_tensor(g, context, "token_embd.weight", GGML_TYPE_Q8_0, 32, 2);
    add_tensor(g, context, "half", GGML_TYPE_F16, 2, 2);
    assert_true(gguf_write_to_file(g, file->path, false));
    for (ssize_t n, at = 0; (n = pread(file->fd, block, sizeof block, at)) > 0; at += n)
        assert_int_equal(sp_buffer_add(&bytes, block, (size_t)n), SP_OK);
    gguf_free(g);
    ggml_free(context);
    return bytes;
}

typedef struct fixture {
    memory_file file;
    sp_buffer bytes;
    sp_gguf *gguf;
} fixture;

static int open_fixture(void **state)
{
    fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    f->file = memory_file_create();
    f->bytes = write_with_ggml(&f->file);
    if (sp_gguf_open(&f->gguf, f->file.path)) fail_msg("%s", sp_message());
    *state = f;
    return 0;
}

static int close_fixture(void **state)
{
    fixture *f = *state;
    sp_gguf_close(f->gguf);
    sp_buffer_free(&f->bytes);
    close(f->file.fd);
    free(f);
    return 0;
}

/* ---- what a good file gives ----------------------------------------------------------------------------------- */

static void integers_of_every_width_convert(void **state)
{
    const sp_gguf *g = ((fixture *)*state)->gguf;
    static const struct {
        const char *key;
        uint32_t expected;
    } good[] = {{"u8", 200}, {"u16", 60000}, {"u32", 4000000000u}, {"i32", 7}, {"i64", 1234567890}, {"bool", 1}};
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        uint32_t value = 0;
        assert_int_equal(sp_gguf_get_u32(&value, g, good[i].key), SP_OK);
        assert_int_equal(value, good[i].expected);
    }
    uint32_t value;
    assert_fails(sp_gguf_get_u32(&value, g, "i8"), SP_ERR_FORMAT, "i8: -100 does not fit into u32");
    assert_fails(sp_gguf_get_u32(&value, g, "i16"), SP_ERR_FORMAT, "does not fit");
    assert_fails(sp_gguf_get_u32(&value, g, "u64"), SP_ERR_FORMAT, "does not fit");
    assert_fails(sp_gguf_get_u32(&value, g, "f32"), SP_ERR_FORMAT, "f32: is f32, not an integer");
    assert_fails(sp_gguf_get_u32(&value, g, "words"), SP_ERR_FORMAT, "words: is an array of string, not a single value");
    assert_fails(sp_gguf_get_u32(&value, g, "absent"), SP_ERR_FORMAT, "absent is missing");
}

static void other_scalars(void **state)
{
    const sp_gguf *g = ((fixture *)*state)->gguf;
    float real = 0;
    bool flag = false;
    sp_gguf_string text;
    assert_int_equal(sp_gguf_get_f32(&real, g, "f32"), SP_OK);
    assert_true(real == 0.25f);
    assert_int_equal(sp_gguf_get_f32(&real, g, "f64"), SP_OK);
    assert_true(real == 1e-5f);
    assert_fails(sp_gguf_get_f32(&real, g, "f64.large"), SP_ERR_FORMAT, "does not fit");
    assert_fails(sp_gguf_get_f32(&real, g, "f32.nan"), SP_ERR_FORMAT, "no finite number");
    assert_fails(sp_gguf_get_f32(&real, g, "u8"), SP_ERR_FORMAT, "is u8");
    assert_int_equal(sp_gguf_get_bool(&flag, g, "bool"), SP_OK);
    assert_true(flag);
    assert_fails(sp_gguf_get_bool(&flag, g, "u8"), SP_ERR_FORMAT, "not a bool");
    assert_int_equal(sp_gguf_get_string(&text, g, "general.architecture"), SP_OK);
    assert_int_equal(text.n_bytes, 5);
    assert_memory_equal(text.bytes, "llama", 5);
    assert_fails(sp_gguf_get_string(&text, g, "i8"), SP_ERR_FORMAT, "not a string");
    assert_true(sp_gguf_has(g, "bool"));
    assert_false(sp_gguf_has(g, "boo"));
}

static void arrays(void **state)
{
    const sp_gguf *g = ((fixture *)*state)->gguf;
    size_t n = 99;
    sp_gguf_string text;
    int32_t integer;
    float real;
    assert_int_equal(sp_gguf_get_array_n(&n, g, "empty"), SP_OK);
    assert_int_equal(n, 0);
    assert_int_equal(sp_gguf_get_array_n(&n, g, "words"), SP_OK);
    assert_int_equal(n, ARRAY_LEN(words));
    for (size_t i = n; i-- > 0;) {
        assert_int_equal(sp_gguf_get_array_string(&text, g, "words", i), SP_OK);
        assert_int_equal(text.n_bytes, strlen(words[i]));
        assert_memory_equal(text.bytes, words[i], text.n_bytes);
    }
    for (size_t i = 0; i < ARRAY_LEN(integers); i++) {
        assert_int_equal(sp_gguf_get_array_i32(&integer, g, "integers", i), SP_OK);
        assert_int_equal(integer, integers[i]);
        assert_int_equal(sp_gguf_get_array_f32(&real, g, "scores", i), SP_OK);
        assert_true(real == scores[i]);
    }
    assert_fails(sp_gguf_get_array_string(&text, g, "words", n), SP_ERR_FORMAT, "has 4 elements, element 4 was wanted");
    assert_fails(sp_gguf_get_array_string(&text, g, "integers", 0), SP_ERR_FORMAT, "an array of i32, not a string");
    assert_fails(sp_gguf_get_array_i32(&integer, g, "words", 0), SP_ERR_FORMAT, "not an integer");
    assert_fails(sp_gguf_get_array_f32(&real, g, "integers", 0), SP_ERR_FORMAT, "not a floating-point");
    assert_fails(sp_gguf_get_array_i32(&integer, g, "i32", 0), SP_ERR_FORMAT, "is i32, not an array");
    assert_fails(sp_gguf_get_array_n(&n, g, "i32"), SP_ERR_FORMAT, "not an array");
    assert_fails(sp_gguf_get_array_n(&n, g, "absent"), SP_ERR_FORMAT, "is missing");
}

static void tensors_as_ggml_wrote_them(void **state)
{
    const fixture *f = *state;
    struct ggml_context *context = NULL;
    struct gguf_context *theirs = gguf_init_from_file(f->file.path, (struct gguf_init_params){.ctx = &context});
    assert_non_null(theirs);
    assert_int_equal(sp_gguf_n_tensors(f->gguf), gguf_get_n_tensors(theirs));
    for (struct ggml_tensor *t = ggml_get_first_tensor(context); t; t = ggml_get_next_tensor(context, t)) {
        if (gguf_find_tensor(theirs, t->name) < 0) continue; /* ggml keeps the data as a tensor of its own */
        const sp_gguf_tensor *ours = sp_gguf_find_tensor(f->gguf, t->name);
        assert_non_null(ours);
        assert_string_equal(ours->name, t->name);
        assert_int_equal(ours->type, t->type);
        for (int i = 0; i < 4; i++) assert_int_equal(ours->shape[i], t->ne[i]);
        assert_int_equal(ours->n_bytes, ggml_nbytes(t));
        assert_memory_equal(ours->data, t->data, ours->n_bytes);
        assert_int_equal((uintptr_t)ours->data % 32, 0);
    }
    assert_string_equal(sp_gguf_tensor_at(f->gguf, 0)->name, "norm.weight");
    assert_int_equal(sp_gguf_tensor_at(f->gguf, 0)->n_dims, 1);
    assert_null(sp_gguf_find_tensor(f->gguf, "norm.weigh"));
    assert_int_equal(sp_gguf_file_bytes(f->gguf), f->bytes.n_bytes);
    gguf_free(theirs);
    ggml_free(context);
}

/* ---- hostile files --------------------------------------------------------------------------------------------- */

static void put_u32(sp_buffer *b, uint32_t value)
{
    assert_int_equal(sp_buffer_add(b, &value, sizeof value), SP_OK);
}
static void put_u64(sp_buffer *b, uint64_t value)
{
    assert_int_equal(sp_buffer_add(b, &value, sizeof value), SP_OK);
}

static void put_string(sp_buffer *b, const char *text)
{
    put_u64(b, strlen(text));
    assert_int_equal(sp_buffer_add_string(b, text), SP_OK);
}

static void put_header(sp_buffer *b, uint32_t version, uint64_t n_tensors, uint64_t n_values)
{
    sp_buffer_clear(b);
    assert_int_equal(sp_buffer_add_string(b, "GGUF"), SP_OK);
    put_u32(b, version);
    put_u64(b, n_tensors);
    put_u64(b, n_values);
}

static void put_tensor(sp_buffer *b, const char *name, uint32_t n_dims, uint64_t n_cols, uint64_t n_rows, uint32_t type,
                       uint64_t offset)
{
    put_string(b, name);
    put_u32(b, n_dims);
    for (uint32_t i = 0; i < n_dims && i < 8; i++) put_u64(b, i == 0 ? n_cols : i == 1 ? n_rows : 1);
    put_u32(b, type);
    put_u64(b, offset);
}

static void put_zeros(sp_buffer *b, size_t n)
{
    static const char zeros[256];
    assert_int_equal(sp_buffer_add(b, zeros, n), SP_OK);
}

static void expect(const sp_buffer *b, sp_status status, const char *message)
{
    memory_file file = memory_file_create();
    sp_gguf *g = (sp_gguf *)&file;
    memory_file_set(&file, b->bytes, b->n_bytes);
    if (status)
        assert_fails(sp_gguf_open(&g, file.path), status, message);
    else if (sp_gguf_open(&g, file.path))
        fail_msg("%s", sp_message());
    assert_true((g == NULL) == (status != SP_OK));
    sp_gguf_close(g);
    close(file.fd);
}

static void hostile_headers(void **state)
{
    sp_buffer b = {0};
    (void)state;
    expect(&b, SP_ERR_FORMAT, "not a GGUF file");
    assert_int_equal(sp_buffer_add_string(&b, "PK\x03\x04 and more"), SP_OK);
    expect(&b, SP_ERR_FORMAT, "not a GGUF file");
    put_header(&b, 2, 0, 0);
    expect(&b, SP_OK, "");
    put_header(&b, 3, 0, 0);
    expect(&b, SP_OK, "");
    put_header(&b, 1, 0, 0);
    expect(&b, SP_ERR_UNSUPPORTED, "GGUF version 1");
    put_header(&b, 4, 0, 0);
    expect(&b, SP_ERR_UNSUPPORTED, "GGUF version 4");
    put_header(&b, 0x03000000, 0, 0);
    expect(&b, SP_ERR_UNSUPPORTED, "big-endian");
    put_header(&b, 3, 0, UINT64_C(1) << 60);
    expect(&b, SP_ERR_FORMAT, "1152921504606846976 metadata values do not fit");
    put_header(&b, 3, UINT64_C(1) << 60, 0);
    expect(&b, SP_ERR_FORMAT, "1152921504606846976 tensors do not fit");
    sp_buffer_free(&b);
}

static void hostile_values(void **state)
{
    sp_buffer b = {0};
    (void)state;
    put_header(&b, 3, 0, 1);
    put_u64(&b, UINT64_MAX); /* the key's length */
    put_zeros(&b, 64);
    expect(&b, SP_ERR_FORMAT, "metadata value 1 of 1: 18446744073709551615 bytes at 32 run past the end");
    put_header(&b, 3, 0, 1);
    put_string(&b, "");
    put_zeros(&b, 64);
    expect(&b, SP_ERR_FORMAT, "a name of 0 bytes");
    put_header(&b, 3, 0, 1);
    put_string(&b, "a\nb");
    put_zeros(&b, 64);
    expect(&b, SP_ERR_FORMAT, "control character");
    put_header(&b, 3, 0, 1);
    put_string(&b, "key");
    put_u32(&b, 13);
    put_zeros(&b, 64);
    expect(&b, SP_ERR_FORMAT, "key: value type 13");
    put_header(&b, 3, 0, 1);
    put_string(&b, "key");
    put_u32(&b, GGUF_TYPE_BOOL);
    put_zeros(&b, 1);
    b.bytes[b.n_bytes - 1] = 2;
    expect(&b, SP_ERR_FORMAT, "a bool of 2");
    put_header(&b, 3, 0, 2);
    for (int i = 0; i < 2; i++) {
        put_string(&b, "key");
        put_u32(&b, GGUF_TYPE_UINT32);
        put_u32(&b, 0);
    }
    expect(&b, SP_ERR_FORMAT, "key: the key is there twice");
    sp_buffer_free(&b);
}

static void hostile_arrays(void **state)
{
    sp_buffer b = {0};
    (void)state;
    static const struct {
        uint32_t type;
        uint64_t n;
        sp_status status;
        const char *message;
    } cases[] = {
        {GGUF_TYPE_UINT8, UINT64_C(1) << 60, SP_ERR_FORMAT, "an array of 1152921504606846976 u8"},
        {GGUF_TYPE_FLOAT64, UINT64_C(1) << 61, SP_ERR_FORMAT, "runs past the end"}, /* times 8 it wraps to 0 */
        {GGUF_TYPE_STRING, UINT64_C(1) << 61, SP_ERR_FORMAT, "runs past the end"},
        {GGUF_TYPE_STRING, 9, SP_ERR_FORMAT, "runs past the end"},
        {GGUF_TYPE_STRING, 8, SP_OK, ""}, /* 64 zeros: eight empty strings */
        {GGUF_TYPE_ARRAY, 1, SP_ERR_UNSUPPORTED, "key: an array of arrays"},
        {77, 1, SP_ERR_FORMAT, "value type 77"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        put_header(&b, 3, 0, 1);
        put_string(&b, "key");
        put_u32(&b, GGUF_TYPE_ARRAY);
        put_u32(&b, cases[i].type);
        put_u64(&b, cases[i].n);
        put_zeros(&b, 64);
        expect(&b, cases[i].status, cases[i].message);
    }
    sp_buffer_free(&b);
}

static void hostile_tensors(void **state)
{
    sp_buffer b = {0};
    (void)state;
    static const struct {
        uint32_t n_dims;
        uint64_t n_cols, n_rows;
        uint32_t type;
        uint64_t offset;
        sp_status status;
        const char *message;
    } cases[] = {
        {2, 8, 2, GGML_TYPE_F32, 0, SP_OK, ""},
        {0, 0, 0, GGML_TYPE_F32, 0, SP_OK, ""},
        {2, 8, 2, GGML_TYPE_F32, 32, SP_ERR_FORMAT,
         "tensor t: offset 32 + 64 bytes, counted from byte 96, runs past the end of the file (160)"},
        {2, 8, 2, GGML_TYPE_F32, 4, SP_ERR_FORMAT, "not a multiple of the alignment (32)"},
        {2, 8, 2, GGML_TYPE_F32, UINT64_MAX - 31, SP_ERR_FORMAT, "runs past the end"},
        {2, 1 << 20, 1 << 20, GGML_TYPE_F32, 0, SP_ERR_FORMAT, "runs past the end"},
        {2, UINT64_C(1) << 40, UINT64_C(1) << 40, GGML_TYPE_F32, 0, SP_ERR_FORMAT, "dimension 1 is"},
        {2, UINT64_C(1) << 62, 1, GGML_TYPE_F32, 0, SP_ERR_FORMAT, "more than memory could have"},
        {2, UINT64_MAX, 1, GGML_TYPE_F32, 0, SP_ERR_FORMAT, "dimension 0 is"},
        {2, 8, 0, GGML_TYPE_F32, 0, SP_ERR_FORMAT, "dimension 1 is 0"},
        {5, 1, 1, GGML_TYPE_F32, 0, SP_ERR_FORMAT, "5 dimensions, at most 4"},
        {UINT32_MAX, 1, 1, GGML_TYPE_F32, 0, SP_ERR_FORMAT, "dimensions, at most 4"},
        {2, 33, 1, GGML_TYPE_Q8_0, 0, SP_ERR_FORMAT, "rows of 33 elements are not whole q8_0 blocks of 32"},
        {2, 32, 1, 4, 0, SP_ERR_UNSUPPORTED, "tensor t: type 4 is none that ggml has"}, /* removed from ggml */
        {2, 32, 1, GGML_TYPE_COUNT, 0, SP_ERR_UNSUPPORTED, "is none that ggml has"},
        {2, 32, 1, UINT32_MAX, 0, SP_ERR_UNSUPPORTED, "type 4294967295"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        put_header(&b, 3, 1, 0);
        put_tensor(&b, "t", cases[i].n_dims, cases[i].n_cols, cases[i].n_rows, cases[i].type, cases[i].offset);
        put_zeros(&b, 160 - b.n_bytes);
        expect(&b, cases[i].status, cases[i].message);
    }
    put_header(&b, 3, 2, 0);
    put_tensor(&b, "t", 1, 1, 1, GGML_TYPE_F32, 0);
    put_tensor(&b, "t", 1, 1, 1, GGML_TYPE_F32, 0);
    put_zeros(&b, 128);
    expect(&b, SP_ERR_FORMAT, "tensor t: is there twice");
    sp_buffer_free(&b);
}

/* Every type number: what ggml has loads, what it has not is refused, nothing aborts. */
static void every_tensor_type(void **state)
{
    sp_buffer b = {0};
    size_t n_loaded = 0;
    (void)state;
    for (uint32_t type = 0; type < GGML_TYPE_COUNT + 20; type++) {
        memory_file file = memory_file_create();
        sp_gguf *g;
        put_header(&b, 3, 1, 0);
        put_tensor(&b, "t", 1, 256, 1, type, 0);
        while (b.n_bytes < 4096) put_zeros(&b, 256);
        memory_file_set(&file, b.bytes, b.n_bytes);
        sp_status st = sp_gguf_open(&g, file.path);
        if (st)
            assert_int_equal(st, SP_ERR_UNSUPPORTED);
        else
            assert_int_equal(sp_gguf_tensor_at(g, 0)->n_bytes, ggml_row_size((enum ggml_type)type, 256));
        n_loaded += st == SP_OK;
        sp_gguf_close(g);
        close(file.fd);
    }
    assert_in_range(n_loaded, 30, GGML_TYPE_COUNT);
    sp_buffer_free(&b);
}

static void put_aligned_tensor(sp_buffer *b, uint32_t alignment, uint64_t offset)
{
    put_header(b, 3, 1, 1);
    put_string(b, "general.alignment");
    put_u32(b, GGUF_TYPE_UINT32);
    put_u32(b, alignment);
    put_tensor(b, "t", 1, 1, 1, GGML_TYPE_F32, offset);
    put_zeros(b, 256 - b->n_bytes);
}

static void alignments(void **state)
{
    static const uint32_t refused[] = {0, 1, 4, 24, 33, UINT32_MAX};
    sp_buffer b = {0};
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(refused); i++) {
        put_aligned_tensor(&b, refused[i], 0);
        expect(&b, SP_ERR_FORMAT, "not a power of two from 8");
    }
    put_aligned_tensor(&b, 8, 8);
    expect(&b, SP_OK, "");
    put_aligned_tensor(&b, 64, 64); /* 112 bytes of header: the data begin at 128 */
    expect(&b, SP_OK, "");
    put_aligned_tensor(&b, 64, 128);
    expect(&b, SP_ERR_FORMAT, "offset 128 + 4 bytes, counted from byte 128, runs past the end of the file (256)");
    put_aligned_tensor(&b, UINT32_C(1) << 31, 0);
    expect(&b, SP_ERR_FORMAT, "counted from byte 2147483648, runs past the end");
    sp_buffer_free(&b);
}

/* ---- every truncation, every bit ------------------------------------------------------------------------------- */

/* Reads all that an open file offers. A byte outside the mapping would end the program, or wake the sanitizer. */
static unsigned read_everything(const sp_gguf *g)
{
    unsigned sum = 0;
    static const char *const keys[] = {"words", "integers", "scores", "empty", "u8", "general.architecture"};
    for (size_t k = 0; k < ARRAY_LEN(keys); k++) {
        size_t n = 0;
        sp_gguf_string text;
        int32_t integer;
        if (!sp_gguf_get_string(&text, g, keys[k]))
            for (size_t i = 0; i < text.n_bytes; i++) sum += (unsigned char)text.bytes[i];
        if (sp_gguf_get_array_n(&n, g, keys[k])) continue;
        for (size_t e = 0; e < n; e++) {
            if (!sp_gguf_get_array_i32(&integer, g, keys[k], e)) sum += (unsigned)integer;
            if (!sp_gguf_get_array_string(&text, g, keys[k], e))
                for (size_t i = 0; i < text.n_bytes; i++) sum += (unsigned char)text.bytes[i];
        }
    }
    for (size_t t = 0; t < sp_gguf_n_tensors(g); t++) {
        const sp_gguf_tensor *tensor = sp_gguf_tensor_at(g, t);
        assert_ptr_equal(sp_gguf_find_tensor(g, tensor->name), tensor);
        for (size_t i = 0; i < tensor->n_bytes; i++) sum += ((const uint8_t *)tensor->data)[i];
    }
    return sum;
}

static volatile unsigned sink; /* what is read must be used, or the compiler leaves the reading out */

/* Loads, or fails with one line that names the file. */
static bool loads_or_explains(const memory_file *file)
{
    sp_gguf *g;
    sp_status st = sp_gguf_open(&g, file->path);
    if (!st) {
        sink = read_everything(g);
        sp_gguf_close(g);
        return true;
    }
    assert_null(g);
    assert_true(strncmp(sp_message(), file->path, strlen(file->path)) == 0);
    assert_null(strpbrk(sp_message(), "\r\n"));
    return false;
}

static void every_truncation_is_refused(void **state)
{
    const fixture *f = *state;
    memory_file file = memory_file_create();
    for (size_t n = 0; n < f->bytes.n_bytes; n++) {
        const size_t padding = 48; /* ggml pads behind the last tensor, too */
        memory_file_set(&file, f->bytes.bytes, n);
        if (loads_or_explains(&file)) assert_true(n >= f->bytes.n_bytes - padding);
    }
    close(file.fd);
}

static size_t header_bytes(const fixture *f)
{
    struct gguf_context *theirs = gguf_init_from_file(f->file.path, (struct gguf_init_params){.no_alloc = true});
    assert_non_null(theirs);
    size_t n = gguf_get_data_offset(theirs);
    gguf_free(theirs);
    return n;
}

static void no_flipped_bit_crashes(void **state)
{
    const fixture *f = *state;
    const size_t n_header = header_bytes(f);
    memory_file file = memory_file_create();
    size_t n_refused = 0;
    for (size_t i = 0; i < n_header; i++)
        for (int bit = 0; bit < 9; bit++) { /* the ninth: all of them */
            f->bytes.bytes[i] ^= (char)(bit < 8 ? 1 << bit : 0xff);
            memory_file_set(&file, f->bytes.bytes, f->bytes.n_bytes);
            n_refused += !loads_or_explains(&file);
            f->bytes.bytes[i] ^= (char)(bit < 8 ? 1 << bit : 0xff);
        }
    assert_in_range(n_refused, 8 * n_header / 4, 9 * n_header);
    close(file.fd);
}

static void missing_files_and_directories(void **state)
{
    sp_gguf *g;
    (void)state;
    assert_fails(sp_gguf_open(&g, "/no/such/model.gguf"), SP_ERR_IO, "/no/such/model.gguf: cannot open: No such file");
    assert_fails(sp_gguf_open(&g, "/tmp"), SP_ERR_IO, "/tmp: not a regular file");
    sp_gguf_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(integers_of_every_width_convert, open_fixture, close_fixture),
        cmocka_unit_test_setup_teardown(other_scalars, open_fixture, close_fixture),
        cmocka_unit_test_setup_teardown(arrays, open_fixture, close_fixture),
        cmocka_unit_test_setup_teardown(tensors_as_ggml_wrote_them, open_fixture, close_fixture),
        cmocka_unit_test(hostile_headers),
        cmocka_unit_test(hostile_values),
        cmocka_unit_test(hostile_arrays),
        cmocka_unit_test(hostile_tensors),
        cmocka_unit_test(every_tensor_type),
        cmocka_unit_test(alignments),
        cmocka_unit_test_setup_teardown(every_truncation_is_refused, open_fixture, close_fixture),
        cmocka_unit_test_setup_teardown(no_flipped_bit_crashes, open_fixture, close_fixture),
        cmocka_unit_test(missing_files_and_directories),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
