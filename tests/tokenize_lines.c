/* tokenize_lines.c: the tokenizer of a GGUF file, or of a Hugging Face directory, as a filter, for tests/oracle/tokenizer.py to
 * compare with others.
 *
 *     tokenize_lines MODEL FLAGS | roundtrip | chat < RECORDS
 *
 * Numbers are 32 bits, little-endian; a string is its length in bytes and the bytes.
 *   FLAGS      (of sp_tokenize) records are strings; a line of ids each
 *   roundtrip  records are strings; "same", or the ids, where detokenising gives other bytes
 *   chat       a record is the number of messages, 1 or 0 (an opening for the answer), and role and content of each;
 *              a line of ids with '*' behind those that are marked as the answer's
 * A failure is a line "error: ...". Seconds in the library go to stderr. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "text/tokenizer.h"

enum { MAX_MESSAGES = 64 };

static bool read_u32(uint32_t *out)
{
    unsigned char b[4];
    if (fread(b, 1, 4, stdin) != 4) return false;
    *out = b[0] | b[1] << 8 | b[2] << 16 | (uint32_t)b[3] << 24;
    return true;
}

/* malloc, with a NUL behind; NULL: the end of the input. */
static char *read_string(size_t *n)
{
    uint32_t length;
    if (!read_u32(&length)) return NULL;
    char *s = malloc((size_t)length + 1);
    *n = length;
    if (!s || fread(s, 1, length, stdin) != length) {
        fprintf(stderr, "tokenize_lines: a record of %u bytes cannot be read\n", (unsigned)length);
        exit(1);
    }
    s[length] = 0;
    return s;
}

static void print_ids(const int32_t *ids, const uint8_t *answer, size_t n)
{
    for (size_t i = 0; i < n; i++) printf("%s%d%s", i ? " " : "", (int)ids[i], answer && answer[i] ? "*" : "");
    putchar('\n');
}

static double run_texts(const sp_tokenizer *t, unsigned flags, bool round_trip)
{
    double seconds = 0;
    char *text;
    for (size_t n_bytes; (text = read_string(&n_bytes)); free(text)) {
        int32_t *ids;
        char *back = NULL;
        size_t n, n_back;
        double start = sp_seconds();
        sp_status st = sp_tokenize(&ids, &n, t, text, n_bytes, flags);
        seconds += sp_seconds() - start;
        if (!st && round_trip) st = sp_detokenize(&back, &n_back, t, ids, n, true);
        if (st)
            printf("error: %s\n", sp_message());
        else if (round_trip && n_back == n_bytes && memcmp(back, text, n_bytes) == 0)
            puts("same");
        else
            print_ids(ids, NULL, n);
        sp_free(ids);
        sp_free(back);
    }
    return seconds;
}

static double run_chats(const sp_tokenizer *t)
{
    double seconds = 0;
    uint32_t n_messages, open_answer;
    while (read_u32(&n_messages) && read_u32(&open_answer) && n_messages <= MAX_MESSAGES) {
        sp_chat_message messages[MAX_MESSAGES];
        char *strings[2 * MAX_MESSAGES];
        int32_t *ids;
        uint8_t *answer;
        size_t n, n_bytes;
        for (size_t i = 0; i < 2 * n_messages; i++) strings[i] = read_string(&n_bytes);
        for (size_t i = 0; i < n_messages; i++) messages[i] = (sp_chat_message){strings[2 * i], strings[2 * i + 1]};
        double start = sp_seconds();
        if (sp_chat_tokenize(&ids, &answer, &n, t, messages, n_messages, open_answer))
            printf("error: %s\n", sp_message());
        else
            print_ids(ids, answer, n);
        seconds += sp_seconds() - start;
        sp_free(ids);
        sp_free(answer);
        for (size_t i = 0; i < 2 * n_messages; i++) free(strings[i]);
    }
    return seconds;
}

int main(int argc, char **argv)
{
    sp_gguf *gguf = NULL;
    sp_tokenizer *t = NULL;
    if (argc != 3) {
        fprintf(stderr, "usage: tokenize_lines MODEL FLAGS|roundtrip|chat < RECORDS\n");
        return 2;
    }
    bool is_directory = sp_path_is_directory(argv[1]);
    double start = sp_seconds(), opened, loaded;
    if (!is_directory && sp_gguf_open(&gguf, argv[1])) {
        fprintf(stderr, "tokenize_lines: %s\n", sp_message());
        return 1;
    }
    opened = sp_seconds();
    sp_status st = is_directory ? sp_tokenizer_from_hf(&t, argv[1]) : sp_tokenizer_from_gguf(&t, gguf);
    loaded = sp_seconds();
    sp_gguf_close(gguf);
    if (st) {
        fprintf(stderr, "tokenize_lines: %s\n", sp_message());
        return 1;
    }
    double seconds = strcmp(argv[2], "chat") == 0
                         ? run_chats(t)
                         : run_texts(t, (unsigned)strtoul(argv[2], NULL, 0), strcmp(argv[2], "roundtrip") == 0);
    fprintf(stderr, "%s %s hash %016llx: %.1f ms to open, %.1f ms to load, %.3f s\n", sp_tokenizer_kind(t),
            sp_tokenizer_chat_family(t), (unsigned long long)sp_tokenizer_hash(t), 1e3 * (opened - start), 1e3 * (loaded - opened),
            seconds);
    sp_tokenizer_free(t);
    return 0;
}
