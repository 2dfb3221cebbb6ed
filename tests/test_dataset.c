/* test_dataset.c: which rows are read, which are skipped, and what the user is told. Row-by-row equality with Python's csv and json
 * modules is tests/oracle/dataset.py's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "format/dataset.h"
#include "softprompt.h"

enum { LOG_BYTES = 1 << 14 };

static char directory[] = "/tmp/test_dataset_XXXXXX";
static char written[64];
static char log_text[LOG_BYTES];

static void keep_line(void *user, sp_log_level level, const char *line)
{
    (void)user, (void)level;
    size_t n = strlen(log_text);
    snprintf(log_text + n, sizeof log_text - n, "%s\n", line);
}

/* Writes the bytes as directory/NAME and loads them. */
static sp_status load_with(sp_dataset **out, const char *name, const char *bytes, size_t n_bytes, sp_data_options options)
{
    sp_logger logger = {keep_line, NULL};
    options.logger = &logger;
    snprintf(written, sizeof written, "%s/%s", directory, name);
    FILE *file = fopen(written, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n_bytes, file), n_bytes);
    assert_int_equal(fclose(file), 0);
    log_text[0] = 0;
    sp_status st = sp_dataset_load(out, written, &options);
    unlink(written);
    return st;
}

static sp_status load_bytes(sp_dataset **out, const char *name, const char *bytes, size_t n_bytes, const char *text,
                            const char *label)
{
    return load_with(out, name, bytes, n_bytes, (sp_data_options){.text_column = text, .label_column = label});
}

static sp_status load(sp_dataset **out, const char *name, const char *bytes)
{
    return load_bytes(out, name, bytes, strlen(bytes), NULL, NULL);
}

static sp_dataset *must_load(const char *name, const char *bytes)
{
    sp_dataset *data;
    sp_status st = load(&data, name, bytes);
    if (st) print_error("%s\n", sp_message());
    assert_int_equal(st, SP_OK);
    return data;
}

static void assert_row(const sp_dataset *data, size_t index, size_t line, const char *text, const char *label)
{
    const sp_row *row = sp_dataset_row(data, index);
    assert_int_equal(row->line, line);
    assert_string_equal(row->text, text);
    if (label)
        assert_string_equal(row->label, label);
    else
        assert_null(row->label);
}

static void assert_fails(sp_status want, const char *name, const char *bytes, const char *message_part)
{
    sp_dataset *data = (sp_dataset *)directory;
    assert_int_equal(load(&data, name, bytes), want);
    assert_null(data);
    if (!strstr(sp_message(), message_part)) print_error("message: %s\n", sp_message());
    assert_non_null(strstr(sp_message(), message_part));
}

static void assert_logged(const char *part)
{
    if (!strstr(log_text, part)) print_error("log: %s\n", log_text);
    assert_non_null(strstr(log_text, part));
}

/* ---- tables -------------------------------------------------------------------------------------------------- */

static void test_csv_quotes_lines_and_bom(void **state)
{
    (void)state;
    sp_dataset *data =
        must_load("a.csv", "\xef\xbb\xbflabel,\"text\"\r\n\r\npos,\"one, \"\"two\"\"\r\nthree\"\r\nneg, blanks stay \rpos,last");
    assert_int_equal(sp_dataset_n_rows(data), 3);
    assert_int_equal(sp_dataset_n_skipped(data), 0);
    assert_row(data, 0, 3, "one, \"two\"\r\nthree", "pos");
    assert_row(data, 1, 5, " blanks stay ", "neg");
    assert_row(data, 2, 6, "last", "pos");
    sp_dataset_free(data);
}

/* A quote out of place costs its own line at most. */
static void test_csv_misplaced_quotes(void **state)
{
    (void)state;
    sp_dataset *data = must_load("a.CSV", "text,label\n5\" disk,pos\n\"a\"b,pos\nfine,pos\n\"never closed,pos\nfine too,neg\n");
    assert_int_equal(sp_dataset_n_rows(data), 3);
    assert_row(data, 0, 2, "5\" disk", "pos");
    assert_row(data, 1, 4, "fine", "pos");
    assert_row(data, 2, 6, "fine too", "neg");
    assert_int_equal(sp_dataset_n_skipped(data), 2);
    assert_logged("a.CSV:3: 1 fields, where the header names 2 columns; row skipped. ");
    assert_logged("a.CSV:5: ");
    assert_logged("a.CSV: 2 of 5 rows skipped");
    sp_dataset_free(data);
}

static void test_tsv_dialects(void **state)
{
    (void)state;
    sp_dataset *data = must_load("a.tsv", "text\tlabel\n\"tab\there\nand line\"\tpos\n");
    assert_row(data, 0, 2, "tab\there\nand line", "pos");
    sp_dataset_free(data);

    data = must_load("a.tsv", "text\tlabel\n\"Open.\tpos\nmiddle\tneg\n\"So\" he said\tpos\nclosed.\"\tneg\n");
    assert_int_equal(sp_dataset_n_rows(data), 4);
    assert_row(data, 0, 2, "\"Open.", "pos");
    assert_row(data, 3, 5, "closed.\"", "neg");
    assert_logged("a.tsv:4: a quote stands where quoting has none");
    sp_dataset_free(data);
}

static void test_columns_are_mapped(void **state)
{
    (void)state;
    static const char bytes[] = "id,review,sentiment\n1,good,pos\n";
    sp_dataset *data;
    assert_int_equal(load_bytes(&data, "a.csv", bytes, strlen(bytes), "review", "sentiment"), SP_OK);
    assert_row(data, 0, 2, "good", "pos");
    sp_dataset_free(data);
    assert_int_equal(load_bytes(&data, "a.csv", bytes, strlen(bytes), "review", NULL), SP_OK);
    assert_row(data, 0, 2, "good", NULL);
    assert_int_equal(sp_dataset_row(data, 0)->kind, SP_ROW_TEXT);
    sp_dataset_free(data);
    assert_int_equal(load_bytes(&data, "a.csv", bytes, strlen(bytes), "review", "stars"), SP_ERR_FORMAT);
    assert_non_null(strstr(sp_message(),
                           "no column \"stars\"; the columns are \"id\", \"review\", \"sentiment\". Add it, or name another "
                           "with --label-column."));
    assert_fails(SP_ERR_FORMAT, "a.csv", bytes, "no column \"text\"; the columns are \"id\", \"review\", \"sentiment\".");
    assert_fails(SP_ERR_FORMAT, "a.csv", "text,text\na,b\n", "two columns are called \"text\"");

    static const char json[] = "{\"review\": \"good\", \"sentiment\": 1}\n";
    assert_int_equal(load_bytes(&data, "a.jsonl", json, strlen(json), "review", "sentiment"), SP_OK);
    assert_row(data, 0, 1, "good", "1");
    sp_dataset_free(data);
    assert_int_equal(load_bytes(&data, "a.jsonl", json, strlen(json), "body", NULL), SP_ERR_FORMAT);
    assert_non_null(strstr(sp_message(), "no row has a column \"body\"; the columns are \"review\", \"sentiment\"."));
}

/* ---- tasks ----------------------------------------------------------------------------------------------------- */

static void assert_tasks(const sp_dataset *data, size_t n, const size_t *tasks)
{
    assert_int_equal(sp_dataset_n_rows(data), n);
    for (size_t i = 0; i < n; i++) assert_true(sp_dataset_row(data, i)->task_id == tasks[i]);
}

static void test_tasks(void **state)
{
    static const char csv[] = "text,task,label\na,1,x\nb,0,y\nc,,x\nd,qa,y\ne,4294967296,y\n";
    static const char json[] = "{\"text\": \"a\", \"task\": 1}\n{\"text\": \"b\"}\n{\"text\": \"c\", \"task\": \"2\"}\n"
                               "{\"text\": \"d\", \"task\": 3.0}\n{\"text\": \"e\", \"task\": [1]}\n"
                               "{\"text\": \"f\", \"task\": -1}\n{\"messages\": [], \"text\": \"g\", \"task\": 1}\n";
    sp_dataset *data;
    (void)state;
    data = must_load("a.csv", csv); /* whatever the column holds, it is no mistake yet */
    assert_tasks(data, 5, (const size_t[]){1, 0, 0, SIZE_MAX, SIZE_MAX});
    sp_dataset_free(data);
    data = must_load("a.jsonl", json);
    assert_tasks(data, 6, (const size_t[]){1, 0, 2, 3, SIZE_MAX, SIZE_MAX});
    sp_dataset_free(data);
}

static void test_a_column_of_tasks_that_was_asked_for(void **state)
{
    static const char csv[] = "text,domain,label\na,1,x\nb,,y\nc,qa,x\n";
    static const char json[] = "{\"text\": \"a\", \"domain\": 1}\n{\"text\": \"b\"}\n{\"text\": \"c\", \"domain\": true}\n";
    const sp_data_options domain = {.task_column = "domain"};
    sp_dataset *data;
    (void)state;
    assert_int_equal(load_with(&data, "a.csv", csv, strlen(csv), domain), SP_OK);
    assert_tasks(data, 1, (const size_t[]){1});
    assert_logged("a.csv:3: column \"domain\" is \"\"; row skipped. Tasks are whole numbers from 0.");
    assert_logged("a.csv:4: column \"domain\" is \"qa\"");
    sp_dataset_free(data);
    assert_int_equal(load_with(&data, "a.jsonl", json, strlen(json), domain), SP_OK);
    assert_tasks(data, 1, (const size_t[]){1});
    assert_logged("a.jsonl:2: column \"domain\" is missing; row skipped. Add it, or name another with --task-column.");
    assert_logged("a.jsonl:3: column \"domain\" is \"true\"");
    sp_dataset_free(data);
    assert_int_equal(load_with(&data, "a.csv", "text,label\na,b\n", 15, domain), SP_ERR_FORMAT);
    assert_non_null(strstr(sp_message(), "no column \"domain\"; the columns are \"text\", \"label\". Add it, or name another with "
                                         "--task-column."));
}

/* ---- JSON ------------------------------------------------------------------------------------------------------ */

static void test_jsonl_labels_and_kinds(void **state)
{
    (void)state;
    sp_dataset *data = must_load(
        "a.jsonl", "{\"text\": \"\\u00e9\", \"label\": true}\n\n{\"text\": \"b\", \"label\": 0.1, \"id\": 99999999999999999999}\n"
                   "{\"prompt\": \"p\", \"completion\": \"c\"}\n{\"text\": \"c\", \"label\": 100000.0}\r\n");
    assert_int_equal(sp_dataset_n_rows(data), 3);
    assert_row(data, 0, 1, "\xc3\xa9", "true");
    assert_row(data, 1, 3, "b", "0.1");
    assert_row(data, 2, 5, "c", "100000");
    assert_logged("a.jsonl:4: has prompt and completion, where the rows from line 1 on have text and label; row skipped.");
    sp_dataset_free(data);

    data = must_load("a.ndjson", "{\"prompt\": \"p\", \"completion\": \"c\"}");
    assert_int_equal(sp_dataset_row(data, 0)->kind, SP_ROW_COMPLETION);
    assert_string_equal(sp_dataset_row(data, 0)->prompt, "p");
    assert_string_equal(sp_dataset_row(data, 0)->completion, "c");
    sp_dataset_free(data);
}

static void test_json_array(void **state)
{
    (void)state;
    sp_dataset *data = must_load("a.json", " [\n{\"text\": \"a\",\n \"label\": \"x\"},\n {\"text\": \"b\", \"label\": \"\"}\n, "
                                           "{\"text\": \"c\", \"label\": \"y\"}]\n");
    assert_int_equal(sp_dataset_n_rows(data), 2);
    assert_row(data, 0, 2, "a", "x");
    assert_row(data, 1, 5, "c", "y");
    assert_logged("a.json:4: column \"label\" is empty; row skipped. Fill it, or name another with --label-column.");
    sp_dataset_free(data);
    sp_dataset_free(must_load("a.json", "{\"text\": \"lines are fine too\"}\n"));
    assert_fails(SP_ERR_FORMAT, "a.json", "[{\"text\": \"a\"},\n{\"text\": ", "a.json:2: bad JSON");
    assert_fails(SP_ERR_FORMAT, "a.json", "[{\"text\": \"a\"}\n", "a.json:2: bad JSON: the file ends inside the array");
    assert_fails(SP_ERR_FORMAT, "a.json", "[{\"text\": \"a\"}] x", "something follows");
    assert_fails(SP_ERR_FORMAT, "a.json", "[]", "holds no rows");
}

static void test_messages(void **state)
{
    (void)state;
    sp_dataset *data = must_load(
        "a.jsonl", "{\"messages\": [{\"role\": \"system\", \"content\": \"\"}, {\"role\": \"user\", \"content\": \"q\"}, "
                   "{\"role\": \"assistant\", \"content\": \"a\"}]}\n"
                   "{\"messages\": []}\n"
                   "{\"messages\": 3}\n"
                   "{\"messages\": [{\"role\": \"tool\", \"content\": \"x\"}]}\n"
                   "{\"messages\": [{\"role\": \"user\", \"content\": null}]}\n"
                   "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"\"}]}\n");
    assert_int_equal(sp_dataset_n_rows(data), 1);
    assert_int_equal(sp_dataset_n_skipped(data), 5);
    const sp_row *row = sp_dataset_row(data, 0);
    assert_int_equal(row->n_messages, 3);
    assert_string_equal(row->messages[2].role, "assistant");
    assert_string_equal(row->messages[2].content, "a");
    assert_logged(":2: no message is the assistant's");
    assert_logged(":3: column \"messages\" is a number");
    assert_logged(":4: message 1 has the role \"tool\"");
    assert_logged(":5: message 1 has no \"role\" or no \"content\"");
    assert_logged(":6: the last message of the assistant is empty");
    sp_dataset_free(data);
}

/* ---- bad rows and bad files --------------------------------------------------------------------------------------- */

static void test_bad_rows_are_named(void **state)
{
    (void)state;
    sp_dataset *data = must_load(
        "a.jsonl", "{\"text\": \"a\", \"label\": \"x\"}\n{\"text\": \"a\", \"label\"\n[1]\n{\"text\": 5, \"label\": \"x\"}\n"
                   "{\"text\": \"a\", \"label\": null}\n{\"text\": \"a\", \"label\": []}\n{\"label\": \"x\"}\n"
                   "{\"text\": \"\xff\", \"label\": \"x\"}\n{\"text\": \"\\u0000\", \"label\": \"x\"}\n");
    assert_int_equal(sp_dataset_n_rows(data), 1);
    assert_int_equal(sp_dataset_n_skipped(data), 8);
    assert_logged(":2: bad JSON");
    assert_logged(":3: is a list, not an object");
    assert_logged(":4: column \"text\" is a number; row skipped. Make it a string.");
    assert_logged(":5: column \"label\" is empty");
    assert_logged(":6: column \"label\" is a list");
    assert_logged(":7: column \"text\" is missing");
    assert_logged(":8: bad JSON");
    assert_logged(":9: bad JSON");
    sp_dataset_free(data);

    static const char table[] = "text,label\na\0b,x\n\xff,x\n,x\nok,x\n";
    assert_int_equal(load_bytes(&data, "a.csv", table, sizeof table - 1, NULL, NULL), SP_OK);
    assert_int_equal(sp_dataset_n_rows(data), 1);
    assert_logged(":2: column \"text\" holds a NUL byte");
    assert_logged(":3: column \"text\" is not valid UTF-8");
    assert_logged(":4: column \"text\" is empty");
    sp_dataset_free(data);
}

static void test_ten_are_named_then_counted(void **state)
{
    (void)state;
    char bytes[512] = "text\nfine\n";
    for (int i = 0; i < 25; i++) strcat(bytes, "\"\"\n");
    sp_dataset *data = must_load("a.csv", bytes);
    assert_int_equal(sp_dataset_n_skipped(data), 25);
    assert_logged("a.csv:12: ");
    assert_null(strstr(log_text, "a.csv:13: "));
    assert_logged("a.csv: 25 of 26 rows skipped");
    sp_dataset_free(data);
}

static void test_unusable_files(void **state)
{
    (void)state;
    sp_dataset *data;
    assert_fails(SP_ERR_FORMAT, "a.csv", "", "is empty");
    assert_fails(SP_ERR_FORMAT, "a.csv", "text,label\n", "holds no rows");
    assert_fails(SP_ERR_FORMAT, "a.jsonl", "{\"text\": \"\"}\n", "none of 1 rows can be used; line 1: column \"text\" is empty");
    assert_fails(SP_ERR_UNSUPPORTED, "a.parquet", "PAR1", "known are .jsonl");
    assert_int_equal(load_bytes(&data, "a.tsv", "\xff\xfet\0e\0", 6, NULL, NULL), SP_ERR_FORMAT);
    assert_non_null(strstr(sp_message(), "UTF-16"));
    assert_int_equal(sp_dataset_load(&data, "/nonexistent/a.csv", NULL), SP_ERR_IO);
    assert_int_equal(sp_dataset_load(&data, "/tmp", NULL), SP_ERR_IO);
}

/* A line end missing somewhere must not make one row of the rest. */
static void test_rows_beyond_the_limit(void **state)
{
    (void)state;
    size_t n = SP_MAX_ROW_BYTES + 100;
    char *bytes = malloc(n + 100);
    sp_dataset *data;
    assert_non_null(bytes);
    memset(bytes, 'a', n + 100);
    memcpy(bytes, "text\n", 5);
    memcpy(bytes + n, "\nfine\n", 6);
    static const char *const names[] = {"a.csv", "a.tsv"};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(load_bytes(&data, names[i], bytes, n + 6, NULL, NULL), SP_OK);
        assert_int_equal(sp_dataset_n_rows(data), 1);
        assert_row(data, 0, 3, "fine", NULL);
        assert_logged(":2: more than 67108864 bytes");
        sp_dataset_free(data);
    }
    free(bytes);
}

static int make_directory(void **state)
{
    (void)state;
    return mkdtemp(directory) ? 0 : -1;
}

static int remove_directory(void **state)
{
    (void)state;
    return rmdir(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_csv_quotes_lines_and_bom),
        cmocka_unit_test(test_csv_misplaced_quotes),
        cmocka_unit_test(test_tsv_dialects),
        cmocka_unit_test(test_columns_are_mapped),
        cmocka_unit_test(test_tasks),
        cmocka_unit_test(test_a_column_of_tasks_that_was_asked_for),
        cmocka_unit_test(test_jsonl_labels_and_kinds),
        cmocka_unit_test(test_json_array),
        cmocka_unit_test(test_messages),
        cmocka_unit_test(test_bad_rows_are_named),
        cmocka_unit_test(test_ten_are_named_then_counted),
        cmocka_unit_test(test_unusable_files),
        cmocka_unit_test(test_rows_beyond_the_limit),
    };
    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
