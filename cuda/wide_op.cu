/*
 * wide_op.cu - what goes to wide.cu's kernel: linears and heads of many rows,
 * and experts; where their rows are, rounded (round.cu), and when it is worth
 * it.  Must not know how products are made.
 */
#include "common.cuh"
#include "wide.cuh"

#include <string.h>


static int
is_for(const struct cuda *c, const struct weight *w)
{
    return c->warpgroups && w->dtype != DTYPE_F32;
}


/* Few tiles leave most of the device idle: then weights stream faster.  And
 * where outputs are one tile of tile.cuh's, which reads x once then, rounding
 * would read it as often, and write it. */
int
cuda_wide_wants(const struct cuda *c, const struct weight *w, uint32_t n_rows,
                int is_gate_up)
{
    uint32_t n_tiles = cuda_div_up(n_rows, WIDE_ROWS) * w->n
                       * cuda_div_up(w->n_out, is_gate_up ? 128 : 256);

    return is_for(c, w) && n_tiles >= (uint32_t) c->n_sm / 2
           && (is_gate_up || w->n_out > 128);
}


int
cuda_wide_heads(struct cuda *c, const struct heads *h,
                const struct cuda_norm *norm, const struct weight *up, int add)
{
    const struct weight *w = h->w;
    struct round_args    x;
    struct wide_args     a;
    int      two_terms = up != NULL && w->dtype == DTYPE_FP8;
    uint32_t n_cols = cuda_div_up(w->n_in, atom_cols(w->dtype))
                      * (two_terms ? 2 : 1);
    size_t   rows_bytes = atoms_place(&a.x, NULL, w->dtype,
                                      WIDE_ROWS / ATOM_ROWS,
                                      (size_t) n_cols * w->n);
    uint32_t most = (uint32_t) (CUDA_ROUNDED / rows_bytes) * WIDE_ROWS;

    if (!cuda_wide_wants(c, w, h->n_rows, up != NULL) || most == 0) {
        return -1;
    }

    for (uint32_t r = 0; r < h->n_rows; r += most) {
        memset(&x, 0, sizeof(x));
        memset(&a, 0, sizeof(a));
        x.n_rows = min(most, h->n_rows - r);
        x.x = h->x;
        x.x.data += h->x.stride * r;
        x.x_head = h->x_head;
        x.n_heads = w->n;
        x.n_in = w->n_in;
        x.n_active = 1;
        x.two_terms = two_terms;

        if (norm != NULL) {
            x.x = tensor_from(norm->x, norm->x.stride * r);
            x.norm = norm->w;
            x.eps = norm->eps;
            x.h = tensor_from(norm->y, norm->y.stride * r);
        }

        atoms_place(&x.y, c->rounded, w->dtype, blocks_of(x.n_rows, 0),
                    (size_t) n_cols * w->n);
        cuda_round(c, &x, w->dtype);

        a.m = stream_matrix_of(w);
        a.m_bytes = cuda_weight_bytes(w);
        a.n = w->n;
        a.x = x.y;
        a.two_terms = two_terms;

        if (up != NULL) {
            a.up = stream_matrix_of(up);
        }

        a.x_cols = n_cols;
        a.n_rows = x.n_rows;
        a.y = h->y;
        a.y.data += h->y.stride * r;
        a.y_head = h->y_head;
        a.add = add;
        cuda_wide(c, &a, w->dtype);
    }

    return 0;
}


/* x, sorted, is where the output of down goes later. */
int
cuda_wide_moe(struct cuda *c, const struct moe *m, const uint32_t *place,
              const uint32_t *start)
{
    enum dtype        t = m->gate->dtype;
    uint32_t          n_slots = m->n_rows * m->n_active, n = m->gate->n;
    uint32_t          n_blocks = blocks_of(n_slots, n + 1);
    int               two_terms = t == DTYPE_FP8;
    struct round_args x;
    struct wide_args  a;

    memset(&x, 0, sizeof(x));
    memset(&a, 0, sizeof(a));

    if (!is_for(c, m->gate) || (uintptr_t) m->tmp_down.data % 16 != 0
        || (uintptr_t) m->tmp_gate.data % 16 != 0
        || atoms_place(&x.y, m->tmp_down.data, t, n_blocks,
                       cuda_div_up(m->gate->n_in, atom_cols(t))
                       * (two_terms ? 2 : 1))
           > n_slots * m->tmp_down.stride * sizeof(float)
        || atoms_place(&a.act, m->tmp_gate.data, t, n_blocks,
                       cuda_div_up(m->gate->n_out, atom_cols(t)))
           > n_slots * m->tmp_gate.stride * sizeof(float))
    {
        return -1;
    }

    x.x = m->x;
    x.n_heads = 1;
    x.n_in = m->gate->n_in;
    x.n_rows = n_slots;
    x.n_active = m->n_active;
    x.ids = m->ids;
    x.place = place;
    x.start = start;
    x.two_terms = two_terms;
    cuda_round(c, &x, t);

    a.m = stream_matrix_of(m->gate);
    a.up = stream_matrix_of(m->up);
    a.m_bytes = a.up_bytes = cuda_weight_bytes(m->gate);
    a.n = n;
    a.x = x.y;
    a.two_terms = two_terms;
    a.n_rows = n_slots;
    a.start = start;
    a.out = WIDE_ACTIVATION;
    cuda_wide(c, &a, t);

    a.m = stream_matrix_of(m->down);
    a.up.n_out = 0;
    a.two_terms = 0;
    a.m_bytes = cuda_weight_bytes(m->down);
    a.x = a.act;
    a.out = WIDE_FLOATS;
    a.y = m->tmp_down;
    cuda_wide(c, &a, t);

    return 0;
}
