/*
 * wide.cuh - products of many rows by Hopper's warpgroups (wide.cu), and the
 * order in which they, and attention over prompts (prompt.cu), read rows from
 * shared memory:
 *
 *   atom     8 rows of 128 bytes, 1 KiB: row r at 128 r, its piece p of 16
 *            bytes at p ^ r (the 128-byte swizzle)
 *   atoms    (column block, row block), so that any rows from a multiple of 8
 *            on are one copy
 *
 * Of two terms of x, in fp8, a column block of the second follows that of the
 * first, and has its scales.
 *
 * In bf16 the columns of each 16 are in the order in which common.cuh's weights
 * have them; in fp8 in their own.
 */
#ifndef MOE_CUDA_WIDE_CUH
#define MOE_CUDA_WIDE_CUH

#include "stream.cuh"

#define WIDE_ROWS       128                     /* of x, in a tile */
#define ATOM_ROWS       8
#define ATOM_BYTES      1024
/* 128 rows of a column block. */
#define ATOMS_BYTES     (WIDE_ROWS / ATOM_ROWS * ATOM_BYTES)

#define FP8_MOST        448.0f
/* What is smaller in all of its group counts as zero: 448 over it is finite. */
#define FP8_LEAST       1e-30f

/* Rows that were rounded, T = DTYPE_BF16 or DTYPE_FP8. */
struct atoms {
    unsigned char *data;
    float         *scales;      /* fp8: (column block, row) */
    uint32_t       n_blocks;    /* row blocks */
};

/* What rows of x become. */
struct round_args {
    struct tensor   x;
    size_t          x_head;
    uint32_t        n_heads;
    uint32_t        n_in;
    uint32_t        n_rows;         /* or slots */
    uint32_t        n_active;       /* slots of a row */
    const uint32_t *ids;            /* NULL: rows stay in order */
    const uint32_t *place;
    const uint32_t *start;
    int             two_terms;      /* fp8: x is the sum of two of them */
    /* NULL, or what x, of one head, is normed with first; that goes to h. */
    const float    *norm;           /* (n_in) */
    float           eps;
    struct tensor   h;
    struct atoms    y;
};

enum wide_out {
    WIDE_FLOATS,                /* y; with up, silu(m x) * (up x) */
    WIDE_ACTIVATION,            /* the same with up, rounded, to act */
    WIDE_KEYS                   /* m x to keys, up x to values: prompt.cu */
};

struct wide_args {
    struct stream_matrix m;         /* of expert or head 0 */
    struct stream_matrix up;        /* n_out 0: there is one matrix */
    size_t               m_bytes;   /* from matrix to matrix */
    size_t               up_bytes;
    uint32_t             n;         /* matrices */
    struct atoms         x;
    uint32_t             x_cols;    /* column blocks from matrix to matrix */
    int                  two_terms;
    uint32_t             n_rows;    /* of a matrix; with start, of all */
    const uint32_t      *start;     /* (n + 1) an expert's first row of y */
    enum wide_out        out;
    struct tensor        y;
    size_t               y_head;    /* columns from matrix to matrix */
    int                  add;
    struct atoms         act;
    unsigned char       *keys;      /* (n, tile of 128 rows) 2 ATOMS_BYTES */
    unsigned char       *values;    /* the same; rows are outputs */
    uint32_t             n_tiles;   /* of a matrix there */
    uint32_t             tile0;     /* the first that x has */
};


static inline constexpr __device__ __host__ uint32_t
atom_cols(enum dtype t)
{
    return t == DTYPE_FP8 ? 128 : 64;
}


/* Where in atoms expert e's rows begin: at a whole atom.  Each expert has up to
 * 8 rows more than it fills, and so nobody has to add up. */
static inline __device__ uint32_t
first_block(const uint32_t *start, uint32_t e)
{
    return start == NULL ? 0 : start[e] / ATOM_ROWS + e;
}

static inline __host__ uint32_t
blocks_of(uint32_t n_rows, uint32_t n_experts)
{
    return cuda_div_up(n_rows, ATOM_ROWS) + n_experts;
}

/* Atoms of n_blocks by n_cols column blocks, at p; how many bytes. */
static inline __host__ size_t
atoms_place(struct atoms *a, void *p, enum dtype t, uint32_t n_blocks,
            size_t n_cols)
{
    size_t n = n_cols * n_blocks * ATOM_BYTES;

    a->data = (unsigned char *) p;
    a->scales = (float *) (void *) (a->data + n);
    a->n_blocks = n_blocks;

    return n + (t == DTYPE_FP8 ? n_cols * n_blocks * ATOM_ROWS * sizeof(float)
                               : 0);
}


/* Byte of piece `piece` (16 bytes) of a row. */
static inline __device__ size_t
piece_at(uint32_t row, uint32_t piece, uint32_t n_blocks)
{
    size_t atom = (size_t) (piece / 8) * n_blocks + row / ATOM_ROWS;

    return atom * ATOM_BYTES + row % ATOM_ROWS * 128
           + (piece % 8 ^ row % ATOM_ROWS) * 16;
}


/* Column k of 16 as its place in the order of bf16's weights. */
static inline __device__ uint32_t
order_of(uint32_t k)
{
    return k / 4 * 2 + k % 2 + k % 4 / 2 * 8;
}


/* B of 32 bytes of columns: where it is, in units of 16 bytes; 8 rows to 1024
 * bytes; the 128-byte swizzle.  See PTX, "matrix descriptor". */
static inline __device__ uint64_t
descriptor(const unsigned char *at)
{
    return (uint64_t) (hw_shared_address(at) >> 4 & 0x3fff)
           | (uint64_t) 1 << 16 | (uint64_t) (ATOM_BYTES >> 4) << 32
           | (uint64_t) 1 << 62;
}


/* The same of B turned, 16 rows of it: the next 64 columns are n_bytes
 * further. */
static inline __device__ uint64_t
descriptor_turned(const unsigned char *at, uint32_t n_bytes)
{
    return (uint64_t) (hw_shared_address(at) >> 4 & 0x3fff)
           | (uint64_t) (n_bytes >> 4) << 16
           | (uint64_t) (ATOM_BYTES >> 4) << 32 | (uint64_t) 1 << 62;
}


/* 16 columns of a product's sums as A of the next one: what a lane has of them
 * is what it shall have. */
static __device__ __forceinline__ uint4
sums_as_a(const float *s)
{
    return make_uint4(hw_bf16x2(s[0], s[1]), hw_bf16x2(s[2], s[3]),
                      hw_bf16x2(s[4], s[5]), hw_bf16x2(s[6], s[7]));
}


/* 16 floats of a row as two pieces of bf16. */
static inline __device__ void
put_pieces(const struct atoms &y, uint32_t row, uint32_t group,
           const float4 (&v)[4])
{
    *(uint4 *) (void *) (y.data + piece_at(row, 2 * group, y.n_blocks)) =
        make_uint4(hw_bf16x2(v[0].x, v[0].y), hw_bf16x2(v[1].x, v[1].y),
                   hw_bf16x2(v[2].x, v[2].y), hw_bf16x2(v[3].x, v[3].y));
    *(uint4 *) (void *) (y.data + piece_at(row, 2 * group + 1, y.n_blocks)) =
        make_uint4(hw_bf16x2(v[0].z, v[0].w), hw_bf16x2(v[1].z, v[1].w),
                   hw_bf16x2(v[2].z, v[2].w), hw_bf16x2(v[3].z, v[3].w));
}


/* round.cu, wide.cu */
void cuda_round(struct cuda *c, const struct round_args *a, enum dtype dtype);
void cuda_wide(struct cuda *c, const struct wide_args *a, enum dtype dtype);

#endif /* MOE_CUDA_WIDE_CUH */
