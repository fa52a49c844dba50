/*
 * amx.h - AMX: the compilers' names of its instructions, behind names that
 * t/kernel/amx.h may have taken before, and registers that are all of 16 rows
 * of 64 bytes.
 */
#ifndef MOE_CPU_AMX_H
#define MOE_CPU_AMX_H

#include <stdint.h>

#ifndef AMX_LOAD
#include <immintrin.h>
#define AMX_CONFIG      _tile_loadconfig
#define AMX_RELEASE     _tile_release
#define AMX_ZERO        _tile_zero
#define AMX_LOAD        _tile_loadd
#define AMX_STORE       _tile_stored
#define AMX_DOT_BF16    _tile_dpbf16ps
#define AMX_DOT_BYTES   _tile_dpbsud
#define AMX_EXPAND      expand_avx512
#endif

#define AMX_LINE        64          /* bytes of a register's row */

static inline void
amx_open(void)
{
    struct {
        uint8_t  palette;
        uint8_t  unused[15];
        uint16_t n_bytes[16];
        uint8_t  n_rows[16];
    } c = { .palette = 1 };

    for (int i = 0; i < 8; i++) {
        c.n_bytes[i] = AMX_LINE;
        c.n_rows[i] = 16;
    }

    AMX_CONFIG(&c);
}

#endif /* MOE_CPU_AMX_H */
