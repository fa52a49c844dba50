/*
 * weight.cu - weights on their way to the device: rows of floats are rounded
 * and put in order (see common.cuh) in pinned buffers, two a thread, so that
 * one is filled while the other is copied.
 */
#include "common.cuh"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define UPLOAD_BYTES    ((size_t) 2 << 20)

struct upload {
    cudaStream_t stream;
    unsigned char *room[2];     /* pinned, UPLOAD_BYTES each */
    cudaEvent_t  copied[2];
    int          next;
    int          taken;         /* by a thread; atomic */
};


static uint32_t
padded(uint32_t n, uint32_t to)
{
    return cuda_div_up(n, to) * to;
}


/* Bytes of 16 rows of a tiled matrix, or of one row of others. */
static size_t
stripe_bytes(const struct weight *w)
{
    return w->dtype == DTYPE_F32
           ? (size_t) padded(w->n_in, 4) * 4
           : w->dtype == DTYPE_FP8
           ? (size_t) cuda_div_up(w->n_in, CUDA_FP8_COLS) * CUDA_FP8_BYTES
           : (size_t) padded(w->n_in, CUDA_TILE) * CUDA_TILE * 2;
}


static uint32_t
stripe_rows(const struct weight *w)
{
    return w->dtype == DTYPE_F32 ? 1 : CUDA_TILE;
}


size_t
cuda_weight_bytes(const struct weight *w)
{
    size_t n = cuda_div_up(w->n_out, stripe_rows(w)) * stripe_bytes(w);

    if ((dtype_is_quant(w->dtype) && w->dtype != DTYPE_FP8)
        || w->dtype == DTYPE_TIGHT)
    {
        return 0;
    }

    return (n + 63) / 64 * 64;
}


static uint16_t
round_bf16(float f)
{
    uint32_t u;

    memcpy(&u, &f, sizeof(u));

    if ((u & 0x7fffffff) > 0x7f800000) {
        return (uint16_t) (u >> 16 | 0x40);
    }

    return (uint16_t) ((u + 0x7fff + (u >> 16 & 1)) >> 16);
}


/* n_rows <= 16 rows as one stripe of tiles. */
static void
pack_bf16(unsigned char *to, const float *rows, uint32_t n_rows, uint32_t n_in)
{
    uint16_t *out = (uint16_t *) (void *) to;

    memset(to, 0, (size_t) padded(n_in, CUDA_TILE) * CUDA_TILE * 2);

    for (uint32_t r = 0; r < n_rows; r++) {
        const float *x = rows + (size_t) r * n_in;
        uint32_t     lane0 = r % 8 * 4;

        for (uint32_t i = 0; i < n_in; i++) {
            uint32_t k = i % CUDA_TILE;
            size_t   lane = (size_t) i / CUDA_TILE * 32 + lane0 + k / 4;

            /* Words of a lane: rows r and r + 8, columns 4c and 4c + 2. */
            out[lane * 8 + (k % 4 / 2 * 2 + r / 8) * 2 + k % 2] =
                round_bf16(x[i]);
        }
    }
}


static float
fp8_value(uint8_t q)
{
    int   e = q >> 3 & 15;
    float m = (float) (q & 7) / 8;
    float v = e == 0 ? ldexpf(m, -6) : ldexpf(1 + m, e - 7);

    return q & 0x80 ? -v : v;
}


/* To nearest even; what is too large becomes the largest, 448. */
static uint8_t
round_fp8(float f)
{
    uint8_t sign = signbit(f) ? 0x80 : 0;
    float   a = fabsf(f);
    int     e;

    if (!(a < 464)) {
        return sign | 0x7e;
    }

    frexpf(a, &e);              /* a = m 2^e, m in [1/2, 1) */
    e = e - 1 < -6 ? -6 : e - 1;

    int n = (int) rintf(ldexpf(a, 3 - e));      /* eighths of 2^e */

    if (n == 16) {
        n = 8;
        e++;
    }

    return sign | (uint8_t) (n < 8 ? n : (e + 7) << 3 | (n - 8));
}


/*
 * The scale of a group of a row.  Where the floats are fp8 times one scale, as
 * those of a checkpoint in fp8 are, that scale (or a power of two of it) is
 * found again, and nothing is rounded: the largest of them then is one of
 * eight mantissas times it.  Else the largest becomes 448.
 */
static float
fp8_scale(const float *x, uint32_t n)
{
    float most = 0;

    for (uint32_t i = 0; i < n; i++) {
        most = fmaxf(most, fabsf(x[i]));
    }

    if (!(most > 0) || !(most < INFINITY)) {
        return 1;
    }

    for (int m = 0; m < 8; m++) {
        float    scale = most / (float) ((8 + m) * (m == 7 ? 16 : 32));
        uint32_t i = 0;

        while (i < n && fabsf(fp8_value(round_fp8(x[i] / scale)) * scale
                              - x[i]) <= 2.5e-7f * fabsf(x[i]))
        {
            i++;
        }

        if (i == n) {
            return scale;
        }
    }

    return most / 448;
}


/* n_rows <= 16 rows as one stripe of groups. */
static void
pack_fp8(unsigned char *to, const float *rows, uint32_t n_rows, uint32_t n_in)
{
    memset(to, 0, (size_t) cuda_div_up(n_in, CUDA_FP8_COLS) * CUDA_FP8_BYTES);

    for (uint32_t r = 0; r < n_rows; r++) {
        for (uint32_t i0 = 0; i0 < n_in; i0 += CUDA_FP8_COLS) {
            const float   *x = rows + (size_t) r * n_in + i0;
            uint32_t       n = n_in - i0 < CUDA_FP8_COLS ? n_in - i0
                                                         : CUDA_FP8_COLS;
            unsigned char *group = to + (size_t) i0 / CUDA_FP8_COLS
                                        * CUDA_FP8_BYTES;
            float          scale = fp8_scale(x, n);

            memcpy(group + 16 * CUDA_FP8_COLS + r * 4, &scale, 4);

            for (uint32_t i = 0; i < n; i++) {
                uint32_t lane = r % 8 * 4 + i % 16 / 4;
                uint32_t at = i % 32 / 16 * 8 + r / 8 * 4 + i % 4;

                group[i / 32 * 512 + lane * 16 + at] =
                    round_fp8(x[i] / scale);
            }
        }
    }
}


static void
pack_f32(unsigned char *to, const float *rows, uint32_t n_in)
{
    memcpy(to, rows, (size_t) n_in * sizeof(float));
    memset(to + (size_t) n_in * sizeof(float), 0,
           (size_t) (padded(n_in, 4) - n_in) * sizeof(float));
}


/* Buffers that no other thread has: there are as many as threads. */
static struct upload *
upload_take(struct cuda *c)
{
    for (int i = 0; ; i = (i + 1) % c->b.n_threads) {
        if (!__atomic_exchange_n(&c->uploads[i].taken, 1, __ATOMIC_ACQUIRE)) {
            return &c->uploads[i];
        }
    }
}


static void
upload_give(struct upload *u)
{
    /* pairs with upload_take() */
    __atomic_store_n(&u->taken, 0, __ATOMIC_RELEASE);
}


int
cuda_weight_put(struct backend *b, const struct weight *w, uint32_t i,
                uint32_t row, uint32_t n_rows, const float *rows)
{
    struct cuda    *c = cuda_of(b);
    struct upload  *u = upload_take(c);
    size_t          stripe = stripe_bytes(w);
    uint32_t        height = stripe_rows(w);
    uint32_t        most = (uint32_t) (UPLOAD_BYTES / stripe) * height;
    unsigned char  *to = (unsigned char *) w->data + cuda_weight_bytes(w) * i
                         + row / height * stripe;

    assert(row % CUDA_TILE == 0 && most != 0);

    for (uint32_t at = 0; at < n_rows; at += most) {
        uint32_t       n = n_rows - at < most ? n_rows - at : most;
        unsigned char *room = u->room[u->next];
        size_t         n_bytes = cuda_div_up(n, height) * stripe;

        CUDA_CHECK(cudaEventSynchronize(u->copied[u->next]));

        for (uint32_t r = 0; r < n; r += height) {
            const float *x = rows + (size_t) (at + r) * w->n_in;

            if (w->dtype == DTYPE_F32) {
                pack_f32(room + r * stripe, x, w->n_in);

            } else if (w->dtype == DTYPE_FP8) {
                pack_fp8(room + r / height * stripe, x,
                         n - r < height ? n - r : height, w->n_in);

            } else {
                pack_bf16(room + r / height * stripe, x,
                          n - r < height ? n - r : height, w->n_in);
            }
        }

        CUDA_CHECK(cudaMemcpyAsync(to + at / height * stripe, room, n_bytes,
                                   cudaMemcpyHostToDevice, u->stream));
        CUDA_CHECK(cudaEventRecord(u->copied[u->next], u->stream));
        u->next ^= 1;
    }

    upload_give(u);
    __atomic_store_n(&c->loading, 1, __ATOMIC_RELAXED);

    return 0;
}


int
cuda_uploads_open(struct cuda *c, struct err *e)
{
    c->uploads = (struct upload *) calloc((size_t) c->b.n_threads,
                                          sizeof(*c->uploads));

    if (c->uploads == NULL) {
        return err_set(e, "no memory for the backend");
    }

    for (int i = 0; i < c->b.n_threads; i++) {
        struct upload *u = &c->uploads[i];

        CUDA_CHECK(cudaStreamCreateWithFlags(&u->stream,
                                             cudaStreamNonBlocking));

        for (int k = 0; k < 2; k++) {
            CUDA_CHECK(cudaMallocHost((void **) &u->room[k], UPLOAD_BYTES));
            CUDA_CHECK(cudaEventCreateWithFlags(&u->copied[k],
                                                cudaEventDisableTiming));
        }
    }

    return 0;
}


void
cuda_uploads_wait(struct cuda *c)
{
    if (!c->loading) {
        return;
    }

    for (int i = 0; i < c->b.n_threads; i++) {
        CUDA_CHECK(cudaStreamSynchronize(c->uploads[i].stream));
    }

    c->loading = 0;
}


void
cuda_uploads_close(struct cuda *c)
{
    cuda_uploads_wait(c);

    for (int i = 0; i < c->b.n_threads; i++) {
        struct upload *u = &c->uploads[i];

        for (int k = 0; k < 2; k++) {
            CUDA_CHECK(cudaFreeHost(u->room[k]));
            CUDA_CHECK(cudaEventDestroy(u->copied[k]));
        }

        CUDA_CHECK(cudaStreamDestroy(u->stream));
    }

    free(c->uploads);
}
