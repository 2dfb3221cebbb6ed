/* number.c: numbers as text. */
#include "base/number.h"

#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void sp_format_double(char out[SP_DOUBLE_CHARS], double value)
{
    if (isnan(value)) { /* printf would show the sign of a NaN, which says nothing */
        snprintf(out, SP_DOUBLE_CHARS, "nan");
        return;
    }
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(out, SP_DOUBLE_CHARS, "%.*g", digits, value);
        if (strtod(out, NULL) == value) break;
    }
    char *point = strchr(out, *localeconv()->decimal_point);
    if (point) *point = '.';
}
