/*
 * tokenizer_tiktoken.c - rank files; see tokenizer.c.
 */
#include "tokenizer_impl.h"


int
tokenizer_tiktoken_load(struct tokenizer *t, const char *path,
                        const json_t *config, struct err *e)
{
    (void) t;
    (void) config;

    return err_set(e, "%s: rank files are not supported yet", path);
}
