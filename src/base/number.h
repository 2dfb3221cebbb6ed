/* number.h: numbers as text. */
#ifndef SP_BASE_NUMBER_H
#define SP_BASE_NUMBER_H

enum { SP_DOUBLE_CHARS = 32 };

/* The fewest digits that strtod reads back as the same double, with a '.' whatever the locale says: "0.1", "1e-05", "3".
 * Infinities and NaN come out as "inf", "-inf", "nan": no JSON. */
void sp_format_double(char out[SP_DOUBLE_CHARS], double value);

#endif
