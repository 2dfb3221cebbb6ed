/* test_events.c: checksums, numbers as text, log.jsonl and event files: their bytes, and that they can be cut and gone on with.
 * That TensorBoard reads the events is tests/oracle/events.py's to show. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/crc32c.h"
#include "base/file.h"
#include "base/number.h"
#include "base/rng.h"
#include "train/events.h"
#include "train/run_log.h"

static char path[] = "/tmp/test_events_XXXXXX";

/* RFC 3720, B.4, and the check value of the CRC catalogues. */
static void test_crc32c(void **state)
{
    (void)state;
    uint8_t bytes[32] = {0};
    assert_int_equal(sp_crc32c(0, "123456789", 9), 0xe3069283);
    assert_int_equal(sp_crc32c(0, bytes, 32), 0x8a9136aa);
    memset(bytes, 0xff, 32);
    assert_int_equal(sp_crc32c(0, bytes, 32), 0x62a8ab43);
    for (int i = 0; i < 32; i++) bytes[i] = (uint8_t)i;
    assert_int_equal(sp_crc32c(0, bytes, 32), 0x46dd794e);
    assert_int_equal(sp_crc32c(sp_crc32c(0, bytes, 7), bytes + 7, 25), 0x46dd794e);
    assert_int_equal(sp_crc32c(0, bytes, 0), 0);
}

static void test_doubles_read_back(void **state)
{
    (void)state;
    char text[SP_DOUBLE_CHARS];
    static const double awkward[] = {0, 0.1, 1.0 / 3, DBL_MAX, DBL_MIN, DBL_TRUE_MIN, 1e21, 123456789, -2.5, 0x1.fffffffffffffp-3};
    for (size_t i = 0; i < sizeof awkward / sizeof *awkward; i++) {
        sp_format_double(text, awkward[i]);
        assert_true(strtod(text, NULL) == awkward[i]);
    }
    sp_rng rng = sp_rng_seed(1, 0);
    for (int i = 0; i < 20000; i++) {
        uint64_t bits = sp_rng_next(&rng);
        double value;
        memcpy(&value, &bits, sizeof value);
        if (!isfinite(value)) continue;
        sp_format_double(text, value);
        assert_true(strtod(text, NULL) == value);
    }
    sp_format_double(text, 0.1);
    assert_string_equal(text, "0.1");
    sp_format_double(text, -NAN);
    assert_string_equal(text, "nan");
}

static void assert_file(const char *want)
{
    char *bytes;
    size_t n;
    assert_int_equal(sp_read_file(&bytes, &n, path, 1 << 20), SP_OK);
    assert_string_equal(bytes, want);
    assert_int_equal(n, strlen(want));
    free(bytes);
}

static const char first_row[] = "{\"step\": 1, \"loss\": 0.7, \"learning_rate\": 0.002, \"grad_norm\": null, \"seconds\": 0.25, "
                                "\"examples\": 16, \"tokens\": 611}\n";

static void test_run_log(void **state)
{
    (void)state;
    sp_run_log *log;
    sp_run_log_step row = {
        .step = 1, .loss = 0.7, .learning_rate = 0.002, .grad_norm = NAN, .seconds = 0.25, .examples = 16, .tokens = 611};
    assert_int_equal(sp_run_log_open(&log, path, 0), SP_OK);
    assert_int_equal(sp_run_log_add_step(log, &row), SP_OK);
    uint64_t offset = sp_run_log_offset(log);
    assert_int_equal(offset, strlen(first_row));
    row.step = 2;
    assert_int_equal(sp_run_log_add_step(log, &row), SP_OK);
    assert_int_equal(sp_run_log_sync(log), SP_OK);
    sp_run_log_close(log);

    char want[512];
    sp_evaluation evaluation = {
        .n = 3, .has_accuracy = true, .accuracy = 0.5, .macro_f1 = 0.25, .loss = 1, .perplexity = 2, .seconds = 4};
    assert_int_equal(sp_run_log_open(&log, path, offset), SP_OK); /* as after a kill: step 2 comes after the checkpoint */
    assert_int_equal(sp_run_log_add_evaluation(log, 1, &evaluation), SP_OK);
    sp_run_log_close(log);
    snprintf(want, sizeof want,
             "%s{\"step\": 1, \"eval_loss\": 1, \"eval_perplexity\": 2, \"eval_accuracy\": 0.5, "
             "\"eval_macro_f1\": 0.25, \"eval_seconds\": 4, \"eval_examples\": 3}\n",
             first_row);
    assert_file(want);

    assert_int_equal(sp_run_log_open(&log, path, 100000), SP_ERR_MISMATCH);
    assert_null(log);
    assert_non_null(strstr(sp_message(), path));
    assert_file(want);
    assert_int_equal(sp_run_log_open(&log, "/nonexistent/log.jsonl", 0), SP_ERR_IO);
}

static void test_full_disk(void **state)
{
    (void)state;
    sp_run_log *log;
    sp_events *events;
    sp_run_log_step row = {.step = 1};
    assert_int_equal(sp_run_log_open(&log, "/dev/full", 0), SP_OK);
    assert_int_equal(sp_run_log_add_step(log, &row), SP_ERR_IO);
    assert_non_null(strstr(sp_message(), "/dev/full: cannot write"));
    assert_int_equal(sp_run_log_offset(log), 0);
    sp_run_log_close(log);
    assert_int_equal(sp_events_open(&events, "/dev/full", 0, 0), SP_ERR_IO);
    assert_null(events);
    assert_non_null(strstr(sp_message(), "/dev/full: cannot write"));
}

/* The whole of a small file, byte by byte. */
static void test_event_bytes(void **state)
{
    (void)state;
    /* TensorFlow's own event files begin with these, since their first record has the same length. */
    static const uint8_t header[] = {24, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22};
    static const uint8_t version[] = {0x09, 0,   0,   0,   0,   0,   0,   0xf0, 0x3f, 0x1a, 13,  'b',
                                      'r',  'a', 'i', 'n', '.', 'E', 'v', 'e',  'n',  't',  ':', '2'};
    static const uint8_t point[] = {0x09, 0,    0,  0,    0, 0,   0,   0,   0x40, 0x10, 0xac, 0x02, 0x2a,
                                    12,   0x0a, 10, 0x0a, 3, 'a', '/', 'b', 0x15, 0,    0,    0,    0x3f};
    sp_events *events;
    sp_mapped_file file;
    assert_int_equal(sp_events_open(&events, path, 0, 1.0), SP_OK);
    assert_int_equal(sp_events_offset(events), sizeof version + 16);
    assert_int_equal(sp_events_scalar(events, "a/b", 300, 0.5, 2.0), SP_OK);
    assert_int_equal(sp_events_offset(events), sizeof version + sizeof point + 32);
    sp_events_close(events);
    assert_int_equal(sp_map_file(&file, path), SP_OK);
    assert_int_equal(file.size, sizeof version + sizeof point + 32);
    assert_memory_equal(file.bytes, header, sizeof header);
    assert_memory_equal(file.bytes + 12, version, sizeof version);
    assert_int_equal(file.bytes[sizeof version + 16], sizeof point);
    assert_memory_equal(file.bytes + sizeof version + 28, point, sizeof point);
    sp_unmap_file(&file);
}

static void test_events_go_on(void **state)
{
    (void)state;
    sp_events *events;
    assert_int_equal(sp_events_open(&events, path, 0, 1.0), SP_OK);
    uint64_t offset = sp_events_offset(events);
    for (size_t step = 0; step < 3; step++) assert_int_equal(sp_events_scalar(events, "x", step, 1, 1), SP_OK);
    uint64_t end = sp_events_offset(events);
    assert_int_equal(sp_events_sync(events), SP_OK);
    sp_events_close(events);
    assert_int_equal(truncate(path, (off_t)end - 5), 0); /* as if the machine had died in the middle of a record */
    assert_int_equal(sp_events_open(&events, path, offset, 9.0), SP_OK);
    assert_int_equal(sp_events_offset(events), offset);
    for (size_t step = 0; step < 3; step++) assert_int_equal(sp_events_scalar(events, "x", step, 1, 1), SP_OK);
    assert_int_equal(sp_events_offset(events), end);
    sp_events_close(events);
    assert_int_equal(sp_events_open(&events, path, end + 1, 9.0), SP_ERR_MISMATCH);
}

static int make_file(void **state)
{
    (void)state;
    int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

static int remove_file(void **state)
{
    (void)state;
    return unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_crc32c),    cmocka_unit_test(test_doubles_read_back), cmocka_unit_test(test_run_log),
        cmocka_unit_test(test_full_disk), cmocka_unit_test(test_event_bytes),       cmocka_unit_test(test_events_go_on),
    };
    return cmocka_run_group_tests(tests, make_file, remove_file);
}
