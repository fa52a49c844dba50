/*
 * expand.h - columns of tight weights (tight.h) as tiles of BF16 in the cache,
 * for one kind of vector (vec_*.h comes first).
 */
#ifndef MOE_CPU_EXPAND_H
#define MOE_CPU_EXPAND_H

/* Columns [col, col + n_cols) of a tile, whole steps from the first on; `to`
 * has room for the last of them to its end. */
static inline void
expand(uint8_t *to, const uint8_t *tile, uint32_t n_in, uint32_t col,
       uint32_t n_cols)
{
    const uint8_t *step = tile + tight_head(n_in)
                          + (size_t) (col / TIGHT_COLS) * TIGHT_STEP;
    uint8_t       *at = to;

    for (uint32_t i = 0; i < n_cols; i += TIGHT_COLS) {
        vec_expand(at, step, tile);
        at += TIGHT_COLS * TILE * 2;
        step += TIGHT_STEP;
    }

    tight_patch(to, tile, col, n_cols);
}

#endif /* MOE_CPU_EXPAND_H */
