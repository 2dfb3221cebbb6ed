/* audit.h: what shows an audit's report. */
#ifndef CLI_AUDIT_H
#define CLI_AUDIT_H

#include <softprompt.h>

#include "options.h"

typedef struct audit_view {
    const sp_tokenizer *tokenizer;
    double epsilon;
    bool prompt_rows, heads; /* heads: a line for each */
} audit_view;

extern const char *const audit_verdict_names[];

/* A token as text; NULL, which JSON has as null, where it is no whole character. Freed with sp_free. */
char *audit_token_text(const sp_tokenizer *tokenizer, int32_t token);

/* Each returns the exit code. */
int audit_print_json(const sp_audit_report *report, const audit_view *view);
int audit_print_tables(const sp_audit_report *report, const audit_view *view);

/* Heat maps, layers by heads, into a .svg or .png. */
int audit_draw(const sp_audit_report *report, const char *path);

#endif
