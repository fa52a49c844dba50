/*
 * rows.cu - what is done to a row at a time: embedding, norm, rotation,
 * activation, storing keys, gathering.  Formulas are in backend.h.
 *
 * All of it is bound by latency at decode and by memory at prefill: a row is
 * read and written once, 8 bytes and at most 10 FLOPs an element.
 *
 *   embed, rmsnorm, kv_put, gather: a block a row, a thread every 256th column
 *   rope, silu_mul, angles: a thread an element (a pair) of all rows
 *
 * Not measured on a GPU yet.
 */
#include "common.cuh"

#include <assert.h>
#include <string.h>


static __global__ void
embed_kernel(struct tensor y, const struct weight w, const uint32_t *ids,
             const uint32_t *chosen)
{
    hw_depend();
    hw_release();

    uint32_t id = ids[blockIdx.x];
    float   *to = y.data + y.stride * blockIdx.x;

    /* What comes after no token is for nobody. */
    if (id >= BACKEND_CHOSEN) {
        id = chosen[id - BACKEND_CHOSEN];
        id = id == BACKEND_NO_TOKEN ? 0 : id;
    }

    for (uint32_t i = threadIdx.x; i < w.n_in; i += blockDim.x) {
        if (w.dtype == DTYPE_F32) {
            to[i] = ((const float *) w.data)
                    [(size_t) id * (cuda_div_up(w.n_in, 4) * 4) + i];
            continue;
        }

        size_t   tile = (size_t) id / CUDA_TILE
                        * cuda_div_up(w.n_in, CUDA_TILE) + i / CUDA_TILE;
        uint32_t lane = id % 8 * 4 + i % CUDA_TILE / 4;
        uint32_t at = (i % 4 / 2 * 2 + id % CUDA_TILE / 8) * 2 + i % 2;

        to[i] = cuda_bf16(((const uint16_t *) w.data)
                          [(tile * HW_WARP + lane) * 8 + at]);
    }
}


static __global__ void
rmsnorm_kernel(struct tensor y, struct tensor x, const float *w, float eps,
               uint32_t n)
{
    float       *room = (float *) (void *) hw_shared();
    const float *from = x.data + x.stride * blockIdx.x;
    float       *to = y.data + y.stride * blockIdx.x;
    float        sum = 0;

    hw_depend();
    hw_release();

    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        sum += from[i] * from[i];
    }

    float scale = 1 / sqrtf(cuda_block_sum(sum, room) / (float) n + eps);

    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        to[i] = from[i] * scale * w[i];
    }
}


/* The product is rounded to float, the cosine is of a double: positions of a
 * million still have their angle. */
static __global__ void
angles_kernel(struct tensor angles, const float *freqs, uint32_t n_pairs,
              float scale, const uint32_t *pos, uint32_t n_tok)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;

    hw_depend();
    hw_release();

    if (i < n_tok * n_pairs) {
        uint32_t t = i / n_pairs, k = i % n_pairs;
        double   angle = (double) ((float) pos[t] * freqs[k]);
        float   *to = angles.data + angles.stride * t + k;

        to[0] = (float) cos(angle) * scale;
        to[n_pairs] = (float) sin(angle) * scale;
    }
}


static __global__ void
rope_kernel(const struct rope a, uint32_t n_tok)
{
    uint32_t n = a.n_heads * (a.n / 2);
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;

    hw_depend();
    hw_release();

    if (i < n_tok * n) {
        cuda_rope_pair(a, i / n, i % n);
    }
}


static __global__ void
kv_put_kernel(const struct kv_store kv, uint32_t layer, struct tensor x,
              uint32_t n, const struct cuda_batch batch)
{
    hw_depend();
    hw_release();

    uint32_t t = blockIdx.x, pos = batch.pos[t];
    uint32_t page = batch.pages[batch.table[t] + pos / BACKEND_PAGE_TOK];

    for (uint32_t i = threadIdx.x; i < kv.row; i += blockDim.x) {
        cuda_kv_set(kv, page, layer, pos % BACKEND_PAGE_TOK, i,
                    i < n ? x.data[x.stride * t + i] : 0);
    }
}


static __global__ void
silu_mul_kernel(struct tensor y, struct tensor gate, struct tensor up,
                uint32_t n_rows, uint32_t n)
{
    size_t i = (size_t) blockIdx.x * blockDim.x + threadIdx.x;

    hw_depend();
    hw_release();

    if (i < (size_t) n_rows * n) {
        size_t r = i / n, k = i % n;

        y.data[y.stride * r + k] = cuda_silu(gate.data[gate.stride * r + k])
                                   * up.data[up.stride * r + k];
    }
}


static __global__ void
gather_kernel(struct tensor y, struct tensor x, const uint32_t *rows,
              uint32_t n)
{
    hw_depend();
    hw_release();

    const float *from = x.data + x.stride * rows[blockIdx.x];
    float       *to = y.data + y.stride * blockIdx.x;

    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        to[i] = from[i];
    }
}


void
cuda_embed(struct backend *b, struct tensor y, const struct weight *w)
{
    struct cuda *c = cuda_of(b);

    cuda_launch(c, c->n_tok, CUDA_THREADS, 0, embed_kernel, y, *w,
                c->batch.ids, c->chosen);
}


void
cuda_rmsnorm(struct backend *b, struct tensor y, struct tensor x,
             const float *w, float eps, uint32_t n_rows, uint32_t n)
{
    if (n_rows != 0) {
        cuda_launch(cuda_of(b), n_rows, CUDA_THREADS,
                    CUDA_THREADS / HW_WARP * sizeof(float), rmsnorm_kernel,
                    y, x, w, eps, n);
    }
}


void
cuda_angles(struct backend *b, struct tensor angles, const float *freqs,
            uint32_t n_pairs, float scale)
{
    struct cuda *c = cuda_of(b);

    cuda_launch(c, cuda_div_up(c->n_tok * n_pairs, CUDA_THREADS),
                CUDA_THREADS, 0, angles_kernel, angles, freqs, n_pairs, scale,
                c->batch.pos, c->n_tok);
}


void
cuda_rope(struct backend *b, const struct rope *a)
{
    struct cuda *c = cuda_of(b);

    cuda_launch(c, cuda_div_up(c->n_tok * a->n_heads * (a->n / 2),
                               CUDA_THREADS),
                CUDA_THREADS, 0, rope_kernel, *a, c->n_tok);
}


void
cuda_kv_put(struct backend *b, const struct kv_store *kv, uint32_t layer,
            struct tensor x, uint32_t n)
{
    struct cuda *c = cuda_of(b);

    cuda_launch(c, c->n_tok, CUDA_THREADS, 0, kv_put_kernel, *kv, layer, x, n,
                c->batch);
}


void
cuda_silu_mul(struct backend *b, struct tensor y, struct tensor gate,
              struct tensor up, uint32_t n_rows, uint32_t n)
{
    uint32_t n_blocks = (uint32_t) (((size_t) n_rows * n + CUDA_THREADS - 1)
                                    / CUDA_THREADS);

    if (n_blocks != 0) {
        cuda_launch(cuda_of(b), n_blocks, CUDA_THREADS, 0, silu_mul_kernel, y,
                    gate, up, n_rows, n);
    }
}


void
cuda_gather(struct backend *b, struct tensor y, struct tensor x,
            const uint32_t *rows, uint32_t n_rows, uint32_t n)
{
    struct cuda *c = cuda_of(b);

    if (n_rows == 0) {
        return;
    }

    /* Through the pinned place that begin() left for it.  Its copy may be under
     * way still, and take some of these along: they come again behind it. */
    uint32_t *host = c->meta_host + (c->rows - c->meta);

    assert(n_rows <= c->n_tok);
    memcpy(host, rows, n_rows * sizeof(*rows));
    CUDA_CHECK(cudaMemcpyAsync(c->rows, host, n_rows * sizeof(*rows),
                               cudaMemcpyHostToDevice, c->stream));
    cuda_launch(c, n_rows, CUDA_THREADS, 0, gather_kernel, y, x, c->rows, n);
}
