/* test_safetensors.c: the safetensors reader against hostile headers, every truncation and every flipped bit; the writer against
 * the bytes that the reference implementation writes. oracle/adapter.py reads our files with that implementation, and it ours. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <sys/stat.h>

#include "base/buffer.h"
#include "base/file.h"
#include "files.h"
#include "format/safetensors.h"

/* A file of this header and n_data bytes 0, 1, 2, ... */
static void make_file(sp_buffer *b, const char *header, size_t n_data)
{
    const uint64_t n_header = strlen(header);
    sp_buffer_clear(b);
    assert_int_equal(sp_buffer_add(b, &n_header, sizeof n_header), SP_OK);
    assert_int_equal(sp_buffer_add_string(b, header), SP_OK);
    for (size_t i = 0; i < n_data; i++) assert_int_equal(sp_buffer_add(b, &(uint8_t){(uint8_t)i}, 1), SP_OK);
}

static void expect(const sp_buffer *b, sp_status status, const char *message)
{
    memory_file file = memory_file_create();
    sp_safetensors *f = (sp_safetensors *)&file;
    memory_file_set(&file, b->bytes, b->n_bytes);
    if (status)
        assert_fails(sp_safetensors_open(&f, file.path), status, message);
    else if (sp_safetensors_open(&f, file.path))
        fail_msg("%s", sp_message());
    assert_true((f == NULL) == (status != SP_OK));
    sp_safetensors_close(f);
    close(file.fd);
}

/* ---- reading --------------------------------------------------------------------------------------------------- */

static void tensors_in_the_order_of_their_bytes(void **state)
{
    sp_buffer b = {0};
    memory_file file = memory_file_create();
    sp_safetensors *f;
    (void)state;
    make_file(&b,
              "{\"late\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[4,7]},\"__metadata__\":{\"format\":\"pt\",\"a\":\"b\"},"
              "\"early\":{\"dtype\":\"I16\",\"shape\":[1,2],\"data_offsets\":[0,4]},"
              "\"none\":{\"dtype\":\"F32\",\"shape\":[0,5],\"data_offsets\":[7,7]},"
              "\"scalar\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[7,15]}}   ",
              15);
    memory_file_set(&file, b.bytes, b.n_bytes);
    if (sp_safetensors_open(&f, file.path)) fail_msg("%s", sp_message());
    assert_int_equal(sp_safetensors_n_tensors(f), 4);
    assert_string_equal(sp_safetensors_at(f, 0)->name, "early");
    assert_string_equal(sp_safetensors_at(f, 1)->name, "late");
    const sp_st_tensor *late = sp_safetensors_find(f, "late"), *scalar = sp_safetensors_find(f, "scalar");
    assert_ptr_equal(late, sp_safetensors_at(f, 1));
    assert_int_equal(late->type, SP_U8);
    assert_int_equal(late->n_dims, 1);
    assert_int_equal(late->shape[0], 3);
    assert_memory_equal(late->data, "\4\5\6", 3);
    assert_int_equal(scalar->n_dims, 0);
    assert_int_equal(scalar->n_bytes, 8);
    assert_int_equal(sp_safetensors_find(f, "none")->n_bytes, 0);
    assert_null(sp_safetensors_find(f, "lat"));
    assert_null(sp_safetensors_find(f, "__metadata__"));
    assert_string_equal(sp_safetensors_metadata(f, "format"), "pt");
    assert_null(sp_safetensors_metadata(f, "absent"));
    sp_safetensors_close(f);
    sp_buffer_free(&b);
    close(file.fd);
}

static void floating_types_become_f32(void **state)
{
    static const double f64[] = {1.5, -1e-300, 3e38, 0.1};
    static const uint16_t f16[] = {0x3c00, 0xc000, 0x0001, 0x7bff}; /* 1, -2, the smallest, the largest */
    static const uint16_t bf16[] = {0x3f80, 0xc000, 0x0001, 0x7f7f};
    static const float from_f64[] = {1.5f, -0.0f, 3e38f, 0.1f}, from_f16[] = {1, -2, 0x1p-24f, 65504};
    static const float from_bf16[] = {1, -2, 0x1p-133f, 0x1.fep127f};
    static const uint8_t odd = 7; /* in front: nothing behind it is aligned */
    const sp_st_tensor tensors[] = {
        {"odd", SP_U8, 1, {1}, &odd, 1},
        {"f64", SP_F64, 2, {2, 2}, f64, sizeof f64},
        {"f16", SP_F16, 1, {4}, f16, sizeof f16},
        {"bf16", SP_BF16, 1, {4}, bf16, sizeof bf16},
        {"f32", SP_F32, 1, {4}, from_f16, sizeof from_f16},
    };
    const float *expected[] = {NULL, from_f64, from_f16, from_bf16, from_f16};
    char *dir = make_directory(), *path = sp_path_join(dir, "t.safetensors");
    sp_safetensors *f;
    float out[4];
    (void)state;
    assert_int_equal(sp_safetensors_write(path, tensors, ARRAY_LEN(tensors), NULL, 0), SP_OK);
    if (sp_safetensors_open(&f, path)) fail_msg("%s", sp_message());
    for (size_t i = 1; i < ARRAY_LEN(tensors); i++) {
        const sp_st_tensor *t = sp_safetensors_find(f, tensors[i].name);
        assert_int_equal(sp_safetensors_read_f32(out, f, t, 0, 4), SP_OK);
        assert_memory_equal(out, expected[i], sizeof out);
        assert_int_equal(sp_safetensors_read_f32(out, f, t, 2, 1), SP_OK);
        assert_memory_equal(out, expected[i] + 2, sizeof *out);
        assert_fails(sp_safetensors_read_f32(out, f, t, 3, 2), SP_ERR_ARGUMENT, "values 3 to 5 of 4");
        assert_fails(sp_safetensors_read_f32(out, f, t, SIZE_MAX, 2), SP_ERR_ARGUMENT, "of 4");
    }
    assert_fails(sp_safetensors_read_f32(out, f, sp_safetensors_find(f, "odd"), 0, 1), SP_ERR_FORMAT, "U8 where floating");
    sp_safetensors_close(f);
    free(path);
    remove_directory(dir);
}

static void hostile_headers(void **state)
{
    static const struct {
        const char *header;
        size_t n_data;
        sp_status status;
        const char *message;
    } cases[] = {
        {"{}", 0, SP_OK, ""},
        {"", 0, SP_ERR_FORMAT, "bad JSON"},
        {"[]", 0, SP_ERR_FORMAT, "not a JSON object"},
        {"{\"a\":", 0, SP_ERR_FORMAT, ":1:5: bad JSON"},
        {"{\"a\":{},\"a\":{}}", 0, SP_ERR_FORMAT, "duplicate object key"},
        {"{\"__metadata__\":3}", 0, SP_ERR_FORMAT, "\"__metadata__\" is no object"},
        {"{\"__metadata__\":{\"a\":3}}", 0, SP_ERR_FORMAT, "metadata \"a\" is no string"},
        {"{\"t\":3}", 0, SP_ERR_FORMAT, "tensor t: is no object"},
        {"{\"t\":{}}", 0, SP_ERR_FORMAT, "tensor t: \"dtype\" is missing"},
        {"{\"t\":{\"dtype\":\"F8_E4M3\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, SP_ERR_UNSUPPORTED, "tensor t: dtype F8_E4M3"},
        {"{\"t\":{\"dtype\":\"F32\"}}", 0, SP_ERR_FORMAT, "\"shape\" is missing"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1,-1]}}", 0, SP_ERR_FORMAT, "something else than whole numbers"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1.0]}}", 0, SP_ERR_FORMAT, "something else than whole numbers"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1]}}", 0, SP_ERR_FORMAT, "more than 8 dimensions"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904]}}", 0, SP_ERR_FORMAT, "no size that memory could have"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[99999999999999999999]}}", 0, SP_ERR_FORMAT, "bad JSON"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, SP_ERR_FORMAT, "\"data_offsets\" is missing"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, SP_ERR_FORMAT, "not two whole numbers"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 4, SP_ERR_FORMAT, "run past the end"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, SP_ERR_FORMAT, "run past the end"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 4, SP_ERR_FORMAT,
         "bytes 4 to 8 run past the end of the data (4)"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, SP_ERR_FORMAT,
         "4 bytes where shape and F32 need 8"},
        {"{\"t\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]}}", 8, SP_ERR_FORMAT, "does not begin where"},
        {"{\"t\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 8, SP_ERR_FORMAT, "4 bytes behind the last tensor"},
        {"{\"t\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"u\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[2,"
         "6]}}",
         6, SP_ERR_FORMAT, "tensor u: does not begin where"},
    };
    sp_buffer b = {0};
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        make_file(&b, cases[i].header, cases[i].n_data);
        expect(&b, cases[i].status, cases[i].message);
    }
    sp_buffer_free(&b);
}

static void hostile_lengths_and_nesting(void **state)
{
    sp_buffer b = {0}, deep = {0};
    (void)state;
    expect(&b, SP_ERR_FORMAT, "only 0 bytes");
    make_file(&b, "{}", 0);
    b.n_bytes = 7;
    expect(&b, SP_ERR_FORMAT, "only 7 bytes");
    make_file(&b, "{}", 0);
    memset(b.bytes, 0xff, 8);
    expect(&b, SP_ERR_FORMAT, "a header of 18446744073709551615 bytes");
    for (int i = 0; i < 100000; i++) assert_int_equal(sp_buffer_add_string(&deep, "{\"\":["), SP_OK);
    make_file(&b, deep.bytes, 0);
    expect(&b, SP_ERR_FORMAT, "maximum parsing depth");
    sp_buffer_clear(&deep);
    for (int i = 0; i < (5 << 20) / 8; i++) assert_int_equal(sp_buffer_add_string(&deep, "        "), SP_OK);
    make_file(&b, deep.bytes, 0);
    expect(&b, SP_ERR_FORMAT, "bytes of JSON, at most");
    sp_buffer_free(&deep);
    sp_buffer_free(&b);
}

static bool loads_or_explains(const memory_file *file)
{
    sp_safetensors *f;
    if (sp_safetensors_open(&f, file->path)) {
        assert_true(strncmp(sp_message(), file->path, strlen(file->path)) == 0);
        assert_null(strpbrk(sp_message(), "\r\n"));
        return false;
    }
    for (size_t i = 0; i < sp_safetensors_n_tensors(f); i++) {
        const sp_st_tensor *t = sp_safetensors_at(f, i);
        for (size_t k = 0; k < t->n_bytes; k++) (void)((const volatile uint8_t *)t->data)[k]; /* every byte is really read */
    }
    sp_safetensors_close(f);
    return true;
}

static void every_truncation_and_every_bit(void **state)
{
    sp_buffer b = {0};
    memory_file file = memory_file_create();
    (void)state;
    make_file(&b, "{\"__metadata__\":{\"format\":\"pt\"},\"t\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}  ", 24);
    for (size_t n = 0; n < b.n_bytes; n++) {
        memory_file_set(&file, b.bytes, n);
        assert_false(loads_or_explains(&file));
    }
    for (size_t i = 0; i < b.n_bytes; i++)
        for (int bit = 0; bit < 8; bit++) {
            b.bytes[i] ^= (char)(1 << bit);
            memory_file_set(&file, b.bytes, b.n_bytes);
            loads_or_explains(&file);
            b.bytes[i] ^= (char)(1 << bit);
        }
    close(file.fd);
    sp_buffer_free(&b);
}

/* ---- writing --------------------------------------------------------------------------------------------------- */

static void bytes_as_the_reference_writes_them(void **state)
{
    static const float values[2] = {1, 2};
    /* safetensors.torch.save_file({"prompt_embeddings": tensor([[1., 2.]])}, metadata={"format": "pt"}) */
    static const char expected[] =
        "\x68\0\0\0\0\0\0\0{\"__metadata__\":{\"format\":\"pt\"},\"prompt_embeddings\":{\"dtype\":\"F32\","
        "\"shape\":[1,2],\"data_offsets\":[0,8]}} \0\0\x80\x3f\0\0\0\x40";
    const sp_st_tensor tensor = {"prompt_embeddings", SP_F32, 2, {1, 2}, values, sizeof values};
    const sp_metadata_item metadata = {"format", "pt"};
    char *dir = make_directory(), *path = sp_path_join(dir, "t.safetensors"), *bytes;
    size_t n_bytes;
    (void)state;
    for (int round = 0; round < 2; round++) { /* the second replaces the first */
        assert_int_equal(sp_safetensors_write(path, &tensor, 1, &metadata, 1), SP_OK);
        assert_int_equal(sp_read_file(&bytes, &n_bytes, path, 4096), SP_OK);
        assert_int_equal(n_bytes, sizeof expected - 1);
        assert_memory_equal(bytes, expected, n_bytes);
        free(bytes);
    }
    free(path);
    remove_directory(dir);
}

static void a_failed_write_leaves_the_old_file(void **state)
{
    static const float values[2] = {1, 2};
    const sp_st_tensor tensor = {"t", SP_F32, 1, {2}, values, sizeof values};
    char *dir = make_directory(), *path = sp_path_join(dir, "t.safetensors");
    (void)state;
    assert_fails(sp_safetensors_write("/no/such/place/t.safetensors", &tensor, 1, NULL, 0), SP_ERR_IO, "/no/such/place/");
    assert_int_equal(mkdir(path, 0700), 0); /* a directory cannot be replaced by a file */
    assert_fails(sp_safetensors_write(path, &tensor, 1, NULL, 0), SP_ERR_IO, "cannot replace");
    assert_int_equal(rmdir(path), 0);
    free(path);
    remove_directory(dir); /* succeeds only if nothing was left behind */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_in_the_order_of_their_bytes),
        cmocka_unit_test(floating_types_become_f32),
        cmocka_unit_test(hostile_headers),
        cmocka_unit_test(hostile_lengths_and_nesting),
        cmocka_unit_test(every_truncation_and_every_bit),
        cmocka_unit_test(bytes_as_the_reference_writes_them),
        cmocka_unit_test(a_failed_write_leaves_the_old_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
