/*
 * fast_rows.h - what is done to one row, for one kind of vector.
 */

/*
 * e^x by 2^n * 2^f: x is clamped to where the result is a normal number; the
 * polynomial is the Taylor series of e^r on |r| <= ln(2)/2, whose sixth-order
 * remainder is below half a unit in the last place.
 */
INLINE vec
vec_exp(vec x)
{
    x = vec_min(vec_max(x, vec_set(-87.0f)), vec_set(88.0f));

    vec n = vec_round(vec_mul(x, vec_set(1.44269504088896341f)));

    /* ln 2 in two parts: n * the first is exact. */
    vec r = vec_fma(n, vec_set(-0.693359375f), x);

    r = vec_fma(n, vec_set(2.12194440e-4f), r);

    vec p = vec_set(1.0f / 5040);

    p = vec_fma(p, r, vec_set(1.0f / 720));
    p = vec_fma(p, r, vec_set(1.0f / 120));
    p = vec_fma(p, r, vec_set(1.0f / 24));
    p = vec_fma(p, r, vec_set(1.0f / 6));
    p = vec_fma(p, r, vec_set(0.5f));
    p = vec_fma(p, r, vec_set(1));
    p = vec_fma(p, r, vec_set(1));

    return vec_mul(p, vec_pow2(n));
}


static void
fast_rmsnorm(float *y, const float *x, const float *w, float eps, uint32_t n)
{
    vec      sum[4] = { vec_set(0), vec_set(0), vec_set(0), vec_set(0) };
    uint32_t i = 0;

    for ( ; i + 4 * VEC_N <= n; i += 4 * VEC_N) {
#pragma GCC unroll 4
        for (uint32_t j = 0; j < 4; j++) {
            vec v = vec_load(x + i + j * VEC_N);

            sum[j] = vec_fma(v, v, sum[j]);
        }
    }

    for ( ; i < n; i += VEC_N) {
        vec v = n - i < VEC_N ? vec_load_n(x + i, n - i) : vec_load(x + i);

        sum[0] = vec_fma(v, v, sum[0]);
    }

    float all = vec_sum(vec_add(vec_add(sum[0], sum[1]),
                                vec_add(sum[2], sum[3])));
    vec   scale = vec_set(1 / __builtin_sqrtf(all / (float) n + eps));

    for (i = 0; i + VEC_N <= n; i += VEC_N) {
        vec_store(y + i, vec_mul(vec_mul(vec_load(x + i), scale),
                                 vec_load(w + i)));
    }

    if (i < n) {
        vec_store_n(y + i, vec_mul(vec_mul(vec_load_n(x + i, n - i), scale),
                                   vec_load_n(w + i, n - i)), n - i);
    }
}


INLINE vec
silu_mul_vec(vec gate, vec up)
{
    vec e = vec_exp(vec_sub(vec_set(0), gate));

    return vec_mul(vec_div(gate, vec_add(vec_set(1), e)), up);
}


static void
fast_silu_mul(float *y, const float *gate, const float *up, uint32_t n)
{
    uint32_t i = 0;

    for ( ; i + VEC_N <= n; i += VEC_N) {
        vec_store(y + i, silu_mul_vec(vec_load(gate + i), vec_load(up + i)));
    }

    if (i < n) {
        vec_store_n(y + i, silu_mul_vec(vec_load_n(gate + i, n - i),
                                        vec_load_n(up + i, n - i)), n - i);
    }
}
