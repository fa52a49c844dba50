/*
 * loader.h - what stands between the plan of the weights (plan.c) and their
 * filling (weights.c): every tensor of the family's table in every layer, with
 * its place in the block and its sources.
 */
#ifndef MOE_MODEL_LOADER_H
#define MOE_MODEL_LOADER_H

#include "model/family.h"
#include "safetensors.h"

/* Rows of one matrix, wherever they are. */
struct source {
    const struct safetensors_tensor *tensor;    /* NULL: random */
    const struct safetensors_tensor *scale;     /* of FP8; or NULL */
    uint64_t                         row;       /* of the tensor's rows */
    uint64_t                         scale_row; /* of the scale's rows */
    uint32_t                         first;     /* row within its block grid */
    uint64_t                         seed;
    float                            range;     /* random: -range .. range */
};

/* One tensor of the table in one layer. */
struct item {
    const struct tensor_spec *spec;
    void                     *target;   /* struct weight, or float * */
    uint32_t                  i_layer;
    uint32_t                  n_cols;
    uint32_t                  n_rows;   /* of one matrix; of a vector: 1 */
    uint32_t                  n;        /* matrices */
    size_t                    offset;   /* in the block */
    size_t                    n_bytes;
    struct source            *sources;  /* (n) */
};

struct weights_loader {
    struct weights        *w;
    struct backend        *b;
    const struct config   *c;
    const struct family   *f;
    struct weights_source  src;
    struct safetensors    *files;       /* NULL: random */
    uint8_t               *used;        /* of the files' tensors */
    struct item           *items;
    size_t                 n_items;
    struct arena           arena;       /* of the sources */
    int                    head_is_embed;

    /* While loading: */
    const struct item     *item;
    float                **rooms;       /* (n_threads) rows as FP32 */
    size_t                 n_rooms;
    int                    misfit;      /* any thread: rows were not tight */
};


/* What one token reads: everything, but of the embedding one row, and of the
 * experts those that are chosen. */
size_t loader_active_bytes(const struct weights_loader *l);


/* One step of a generator of random numbers, or of a hash. */
static inline uint64_t
loader_mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ x >> 27) * 0x94d049bb133111ebULL;

    return x ^ x >> 31;
}

static inline size_t
loader_align(size_t n)
{
    return (n + 63) & ~(size_t) 63;
}

#endif /* MOE_MODEL_LOADER_H */
