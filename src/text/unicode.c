/* unicode.c: UTF-8 and white space. One pass, no tables; text that is plain ASCII costs an eighth of a step a byte. */
#include "text/unicode.h"

#include <string.h>

static bool is_continuation(unsigned char byte)
{
    return (byte & 0xc0) == 0x80;
}

/* The bytes of the sequence at s, 1 to 4, if it is well-formed; else 0, and *n_ill is the length of the maximal ill-formed
 * part. The second byte's range is what rules out overlong forms, surrogates and what lies beyond U+10FFFF. */
static size_t sequence_length(size_t *n_ill, const unsigned char *s, size_t n)
{
    *n_ill = 1;
    if (s[0] < 0x80) return 1;
    if (s[0] < 0xc2 || s[0] > 0xf4) return 0;
    size_t length = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    unsigned char low = s[0] == 0xe0 ? 0xa0 : s[0] == 0xf0 ? 0x90 : 0x80, high = s[0] == 0xed ? 0x9f : s[0] == 0xf4 ? 0x8f : 0xbf;
    if (n < 2 || s[1] < low || s[1] > high) return 0;
    for (*n_ill = 2; *n_ill < length; ++*n_ill)
        if (*n_ill >= n || !is_continuation(s[*n_ill])) return 0;
    return length;
}

size_t sp_utf8_valid_prefix(const char *text, size_t n_bytes)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t i = 0, n_ill;
    while (i < n_bytes) {
        uint64_t eight;
        if (n_bytes - i >= sizeof eight) {
            memcpy(&eight, s + i, sizeof eight);
            if (!(eight & 0x8080808080808080u)) {
                i += sizeof eight;
                continue;
            }
        }
        size_t length = sequence_length(&n_ill, s + i, n_bytes - i);
        if (!length) return i;
        i += length;
    }
    return i;
}

sp_status sp_utf8_add_repaired(sp_buffer *out, const char *text, size_t n_bytes)
{
    while (n_bytes > 0) {
        size_t n_valid = sp_utf8_valid_prefix(text, n_bytes), n_ill = 0;
        sp_status st = sp_buffer_add(out, text, n_valid);
        if (st) return st;
        text += n_valid;
        n_bytes -= n_valid;
        if (n_bytes == 0) break;
        sequence_length(&n_ill, (const unsigned char *)text, n_bytes);
        if ((st = sp_buffer_add_string(out, "\xef\xbf\xbd"))) return st;
        text += n_ill;
        n_bytes -= n_ill;
    }
    return SP_OK;
}

size_t sp_utf8_length(char lead)
{
    unsigned char c = (unsigned char)lead;
    return c < 0xc0 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
}

uint32_t sp_utf8_decode(const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t length = sp_utf8_length(*text);
    uint32_t c = length == 1 ? s[0] : s[0] & (0xffu >> (length + 1));
    for (size_t i = 1; i < length; i++) c = c << 6 | (s[i] & 0x3f);
    return c;
}

/* str.isspace: bidirectional class WS, B or S, or category Zs. More than regular expressions' \s by U+001C to U+001F. */
static bool is_python_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool sp_utf8_is_space(const char *text)
{
    uint32_t c = sp_utf8_decode(text);
    return is_python_space(c) && !(c >= 0x1c && c <= 0x1f);
}

void sp_utf8_strip(const char **text, size_t *n_bytes)
{
    while (*n_bytes > 0 && is_python_space(sp_utf8_decode(*text))) {
        size_t length = sp_utf8_length(**text);
        *text += length;
        *n_bytes -= length;
    }
    while (*n_bytes > 0) {
        size_t start = *n_bytes - 1;
        while (is_continuation((unsigned char)(*text)[start])) start--;
        if (!is_python_space(sp_utf8_decode(*text + start))) break;
        *n_bytes = start;
    }
}
