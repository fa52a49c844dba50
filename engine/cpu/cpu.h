/*
 * cpu.h - inside of the CPU backend: how weights lie in memory, and the table
 * of kernels of which there is one a kind of machine.
 *
 * A kernel computes a rectangle of its output on the thread that calls it;
 * cpu.c and its neighbours cut the work into rectangles.  Where a rectangle
 * ends never changes a bit (D6).  ref_*.c is what the others are measured by.
 *
 * A matrix is stored in tiles of 16 rows:
 *   bf16   ((tile), ceil(n_in / 2), 16, 2)   the pair of columns 2k, 2k + 1
 *   f32    ((tile), n_in, 16)
 *   int8, int4: quant.h
 *   tight: tight.h, which kernels make bf16 in registers or in their cache
 * so that a vector holds one column of 16 outputs, whose sums then need no
 * adding across lanes, and bf16 is what the dot-product instructions take.
 * Rows beyond n_out and an odd last column are 0.
 *
 * Matrices of a weight lie one after the other.  On a machine of several nodes
 * (place.h) all first parts do, then all second ones, so that what a node's
 * threads read is in one piece.
 */
#ifndef MOE_CPU_CPU_H
#define MOE_CPU_CPU_H

#include <string.h>

#include "backend.h"
#include "cpu/quant.h"
#include "cpu/threads.h"
#include "cpu/tight.h"

#define TILE            16

/* y (rows, n_out) = or += x (rows, n_in) * W^T */
struct linear {
    const uint8_t  *w;          /* one matrix, in tiles */
    enum dtype      dtype;
    uint32_t        n_out;
    uint32_t        n_in;
    const float    *x;
    size_t          x_stride;
    const uint32_t *x_rows;     /* row r is x's row x_rows[r]; NULL: r */
    float          *y;
    size_t          y_stride;
    int             add;
};

/* y(h) = sum over j of softmax(scale q(h) . key(j)) value(j), j = 0 .. pos */
struct attend {
    float                 *y;       /* head h at h * head */
    const float           *q;       /* the same */
    const struct kv_store *kv;
    const uint32_t        *pages;
    uint32_t               layer;
    uint32_t               pos;
    uint32_t               head;    /* columns of q(h), y(h) and a key: a
                                       multiple of BACKEND_PAD */
    uint32_t               n_value; /* of a value, at most head */
    uint32_t               key;     /* columns of a KV row before the key ... */
    uint32_t               value;   /* ... and before the value */
    float                  scale;
};

struct kernels {
    const char *name;

    /* Outputs of tiles [tile0, tile1) for rows [row0, row1). */
    void (*linear)(const struct linear *a, uint32_t tile0, uint32_t tile1,
                   uint32_t row0, uint32_t row1);

    /* n_heads heads of one token, that read the same keys and values. */
    void (*attend)(const struct attend *a, uint32_t n_heads);

    /* One row of n. */
    void (*rmsnorm)(float *y, const float *x, const float *w, float eps,
                    uint32_t n);
    void (*silu_mul)(float *y, const float *gate, const float *up, uint32_t n);

    int  tight;     /* products with tight weights are the faster ones */
};

extern const struct kernels kernels_ref;
extern const struct kernels kernels_avx2;
extern const struct kernels kernels_avx512;
extern const struct kernels kernels_avx512vnni;
extern const struct kernels kernels_avx512bf16;
extern const struct kernels kernels_amx;

struct cpu {
    struct backend        b;
    const struct kernels *k;
    struct pool          *pool;
    const struct batch   *batch;
};

static inline struct cpu *
cpu_of(struct backend *b)
{
    return (struct cpu *) b;    /* b is the first member */
}


static inline uint32_t
n_tiles(uint32_t n_out)
{
    return (n_out + TILE - 1) / TILE;
}

static inline size_t
tile_bytes(enum dtype t, uint32_t n_in)
{
    return dtype_is_quant(t) ? quant_runs(n_in) * quant_run_bytes(t)
           : t == DTYPE_TIGHT ? tight_bytes(n_in)
           : t == DTYPE_F32 ? (size_t) n_in * TILE * 4
                            : ((size_t) n_in + 1) / 2 * TILE * 4;
}

static inline float
bf16_to_f32(uint16_t h)
{
    uint32_t u = (uint32_t) h << 16;
    float    f;

    memcpy(&f, &u, 4);

    return f;
}

/* Rounds to nearest, ties to even; NaN stays NaN. */
static inline uint16_t
bf16_from_f32(float f)
{
    uint32_t u;

    memcpy(&u, &f, 4);

    if ((u & 0x7fffffff) > 0x7f800000) {
        return (uint16_t) (u >> 16 | 0x40);
    }

    return (uint16_t) ((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* Element (row, col) of a matrix in tiles. */
static inline float
tile_get(const uint8_t *w, enum dtype t, uint32_t n_in, uint32_t row,
         uint32_t col)
{
    const uint8_t *tile = w + row / TILE * tile_bytes(t, n_in);

    if (dtype_is_quant(t)) {
        return quant_get(tile, t, row % TILE, col);
    }

    if (t == DTYPE_TIGHT) {
        return bf16_to_f32(tight_get(tile, n_in, row % TILE, col));
    }

    if (t == DTYPE_F32) {
        float f;

        memcpy(&f, tile + ((size_t) col * TILE + row % TILE) * 4, 4);
        return f;
    }

    uint16_t h;

    memcpy(&h, tile + (((size_t) col / 2 * TILE + row % TILE) * 2 + col % 2)
               * 2, 2);

    return bf16_to_f32(h);
}

/* The row of one token in a KV store. */
static inline uint8_t *
kv_row(const struct kv_store *kv, uint32_t page, uint32_t layer, uint32_t tok)
{
    size_t row = ((size_t) page * kv->n_layers + layer) * BACKEND_PAGE_TOK
                 + tok;

    return (uint8_t *) kv->data + row * kv->row * dtype_bytes(kv->dtype);
}


/* A thread's share of the tiles of each matrix: those of its node, of which it
 * takes a part as the i-th of n. */
struct share {
    int         node;
    uint32_t    tile0;
    uint32_t    tile1;
    int         i;
    int         n;
};

/* The k-th share of thread i of n, which are all threads of the pool, or the
 * caller alone with those of every node.  0: there is none. */
int cpu_share(const struct cpu *c, uint32_t tiles, int i, int n, int k,
              struct share *s);

/* From where tile t of a matrix, one of that node's, is t tiles on. */
const uint8_t *cpu_tiles(const struct cpu *c, const struct weight *w,
                         uint32_t matrix, int node);

/* Thread's way through all of n units of about `work` multiplications each;
 * little work is done by the caller alone. */
void cpu_run(struct cpu *c, pool_fn fn, void *ctx, uint64_t work);

/* attend.c, moe.c, route.c */
void cpu_mla(struct backend *b, const struct mla *a);
void cpu_gqa(struct backend *b, const struct gqa *a);
void cpu_route(struct backend *b, const struct route *a);
void cpu_moe(struct backend *b, const struct moe *a);

#endif /* MOE_CPU_CPU_H */
