/*
 * mock_script.h - what mock_engine is told to do, in words:
 *
 *      tokens=8            tokens of content: "w0 w1 w2 .."
 *      reasoning=0         tokens of reasoning before them: "r0 r1 .."
 *      chunk=1             tokens in one DELTA
 *      bytes=N             pad each token's text to N bytes
 *      delay_ms=0          between two tokens
 *      step_ms=0           tokens fall due together, at multiples of it
 *      spread              no two streams' clocks go alike: see job_due()
 *      stamp               each token of content is the time (us) of its step
 *      prefill_ms=0        before START
 *      finish=stop|length  (more tokens than max_tokens: length)
 *      split_utf8          each character takes two tokens, one without text
 *      logprobs            as if asked for
 *      echo                the content is the request's body
 *      dump                the content is the request's fields
 *      silent              no answer, not even to CANCEL
 *      deaf                no answer to CANCEL
 *      error=invalid|context|busy|unavailable|internal|deadline   ends so
 *
 *   and at=N, after N steps (a step is one DELTA of each choice):
 *
 *      error, stall        the ERROR then; or no more tokens, ever
 *      die, close          _exit(9); or drops this worker's connection
 *      freeze_ms=N         sleeps, heartbeat too
 *      mute                rings no bell from then on
 *      flood               heeds no credit from then on
 *      bad=KIND            breaks the contract once, see bad_names[]
 *      garbage=N           publishes N cells of random bytes
 */
#ifndef MOCK_SCRIPT_H
#define MOCK_SCRIPT_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base.h"

static const char *const error_names[] = {
    "none", "invalid", "context", "busy", "unavailable", "internal",
    "deadline", NULL
};

static const char *const finish_names[] = { "none", "stop", "length", NULL };

/* In order: indexes, frame headers, meaning. */
enum {
    BAD_TAIL_BACK = 1, BAD_TAIL_FAR, BAD_TAIL_ODD, BAD_HEAD_FAR,
    BAD_LENGTH, BAD_HUGE, BAD_PAD, BAD_ZERO,
    BAD_GEN, BAD_SLOT, BAD_TYPE, BAD_FLAGS, BAD_CHOICE, BAD_CHANNEL, BAD_SHORT,
    BAD_TEXT, BAD_UTF8, BAD_TOKENS, BAD_LOGPROBS, BAD_TWICE, BAD_START,
    BAD_FINISH
};

static const char *const bad_names[] = {
    "none", "tail_back", "tail_far", "tail_odd", "head_far",
    "length", "huge", "pad", "zero",
    "gen", "slot", "type", "flags", "choice", "channel", "short",
    "text", "utf8", "tokens", "logprobs", "twice", "start",
    "finish", NULL
};

struct script {
    unsigned    tokens, reasoning, chunk, bytes, delay_ms, prefill_ms, finish;
    unsigned    step_ms, spread, stamp;
    unsigned    split_utf8, logprobs, echo, dump, silent, deaf, error;
    unsigned    at, stall, die, close, freeze_ms, mute, flood, bad, garbage;
};

#define WORD(name, names)   { #name, offsetof(struct script, name), names }

static const struct word {
    const char          *name;
    size_t               offset;
    const char *const   *names;     /* of the values, or NULL: a number */
} words[] = {
    WORD(tokens, NULL), WORD(reasoning, NULL), WORD(chunk, NULL),
    WORD(bytes, NULL), WORD(delay_ms, NULL), WORD(prefill_ms, NULL),
    WORD(step_ms, NULL), WORD(spread, NULL), WORD(stamp, NULL),
    WORD(finish, finish_names), WORD(split_utf8, NULL),
    WORD(logprobs, NULL), WORD(echo, NULL), WORD(dump, NULL),
    WORD(silent, NULL), WORD(deaf, NULL),
    WORD(error, error_names), WORD(at, NULL), WORD(stall, NULL),
    WORD(die, NULL), WORD(close, NULL), WORD(freeze_ms, NULL),
    WORD(mute, NULL), WORD(flood, NULL), WORD(bad, bad_names),
    WORD(garbage, NULL)
};

static struct script defaults = { .tokens = 8, .chunk = 1 };


/* WORDS: ( NAME [ '=' VALUE ] ' '+ )*; unknown ones are ignored. */
static void
script_parse(struct script *s, const char *p, size_t n)
{
    char copy[512];
    char *save = NULL;

    if (n >= sizeof(copy)) {
        n = sizeof(copy) - 1;
    }
    memcpy(copy, p, n);
    copy[n] = '\0';

    for (char *w = strtok_r(copy, " ", &save); w;
         w = strtok_r(NULL, " ", &save))
    {
        char *value = strchr(w, '=');

        if (value) {
            *value++ = '\0';
        }
        for (size_t i = 0; i < BASE_COUNT(words); i++) {
            if (strcmp(words[i].name, w) != 0) {
                continue;
            }
            unsigned v = value ? (unsigned) strtoul(value, NULL, 10) : 1;
            for (unsigned k = 0; words[i].names && words[i].names[k]; k++) {
                if (value && strcmp(words[i].names[k], value) == 0) {
                    v = k;
                }
            }
            memcpy((char *) s + words[i].offset, &v, sizeof(v));
        }
    }
    if (s->chunk < 1 || s->chunk > 64) {
        s->chunk = 1;
    }
}


static void
script_find(struct script *s, const char *p, size_t n)
{
    static const char key[] = "mock ";
    const char *found = NULL, *at;

    *s = defaults;
    while ((at = memmem(p, n, key, sizeof(key) - 1)) != NULL) {
        found = at + sizeof(key) - 1;
        n -= (size_t) (found - p);
        p = found;
    }
    if (found) {
        size_t k = 0;
        while (k < n && found[k] != '"' && found[k] != '\\' && found[k] != '\n')
        {
            k++;
        }
        script_parse(s, found, k);
    }
}

#endif /* MOCK_SCRIPT_H */
