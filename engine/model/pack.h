/*
 * pack.h - the image of a model's weights as a backend packed them, kept in a
 * file so that the next start only reads it.  The file is named after the
 * model's directory and the kind of weights; its key says what it was made
 * from, so that a changed model or another layout is noticed.
 *
 * The directory is the operator's, and trusted as the engine's program is: who
 * writes to a file that is in use changes what the engine says.  A file that is
 * cut off, stale or damaged is told from a good one and made anew.
 */
#ifndef MOE_MODEL_PACK_H
#define MOE_MODEL_PACK_H

#include "backend.h"

struct pack {
    const char     *dir;
    const char     *model_dir;
    const char     *quant;
    uint64_t        key;
    struct backend *b;          /* whose memory the host can read */
    uint8_t        *memory;     /* NULL: where the file gets mapped */
    size_t          n_bytes;
};

/* Adds n bytes to what a key stands for. */
uint64_t pack_key(uint64_t key, const void *p, size_t n);

/* 1: the memory is filled, or where there was none it is the file itself, to be
 * read and then given back with munmap().  0: there is no such file, and the
 * log says why if there is another one. */
int pack_load(struct pack *p);

/* Writes the memory; where it cannot, the log says why. */
void pack_save(const struct pack *p);

#endif /* MOE_MODEL_PACK_H */
