/*
 * unicode.h - UTF-8 and the few properties of characters that a tokenizer
 * needs.  Text is bytes; a character is a uint32_t code point.
 *
 * The tables follow the Unicode versions that Hugging Face's tokenizers were
 * built with, not the newest: what counts is to give the ids that a model was
 * trained on.  Must not know what a token is.
 */
#ifndef MOE_UNICODE_H
#define MOE_UNICODE_H

#include "base.h"

#define UNICODE_BAD     0xfffdu         /* replacement character */
#define UNICODE_BAD_S   "\xef\xbf\xbd"  /* the same in UTF-8 */

/*
 * One character of n > 0 bytes.  > 0: its length, *cp is set.  < 0: that many
 * bytes are a maximal ill-formed subpart, to be read as one U+FFFD (*cp is
 * set to that).  0: all n bytes are the beginning of a character.
 */
int unicode_decode(const char *p, size_t n, uint32_t *cp);

/* Bytes written, 1..4.  cp must be a scalar value. */
size_t unicode_encode(uint32_t cp, char out[4]);

/* How many of the n bytes from the start on are valid UTF-8. */
size_t unicode_valid(const char *p, size_t n);

/* Appends the text with each maximal ill-formed subpart as U+FFFD, like
 * Python's errors="replace" and Rust's from_utf8_lossy.  -1: no memory. */
int unicode_lossy(const char *p, size_t n, struct buf *out);

/* White_Space. */
int unicode_is_space(uint32_t cp);

/* Unpacks the tables of what follows, which do it themselves when first used.
 * -1: no memory.  Any thread, any number of times. */
int unicode_init(void);

/* Appends the normal form of valid UTF-8: NFC and NFKC compose, NFKC and NFKD
 * are compatible.  -1: no memory. */
int unicode_form(const char *p, size_t n, int composes, int compatible,
                 struct buf *out);

/* Appends the text with each character in lower case by itself. */
int unicode_lower(const char *p, size_t n, struct buf *out);

/*
 * For a pattern engine whose tables are older or newer than Hugging Face's:
 * another text of the same length, in which characters that the two do not
 * have in the same category are replaced by ones that both do.  1: it is
 * appended to out; 0: there is nothing to replace; -1: no memory.
 */
int unicode_stand_in(const char *p, size_t n, struct buf *out);

#endif /* MOE_UNICODE_H */
