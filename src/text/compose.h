/* compose.h: Unicode's normalisation form C. */
#ifndef SP_TEXT_COMPOSE_H
#define SP_TEXT_COMPOSE_H

#include "softprompt.h"

/* *out (free) gets form C of the text, which is well-formed UTF-8. O(n log n), whatever marks the text heaps up. */
sp_status sp_compose(char **out, size_t *n_out, const char *text, size_t n_bytes);

#endif
