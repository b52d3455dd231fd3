/* ggml's quantization with an importance matrix, several groups of weights at a time, one a lane.
 *
 * ggml-quants.c searches the scale of one group after the other, in scalar arithmetic. Here LANES
 * groups are searched side by side. Every lane does what ggml does, in the same order, with the
 * same roundings, so the bytes are the same: compile with -ffp-contract=off and without any fast
 * mathematics. `simd.py` compiles this file, and compares its bytes with ggml's before it is used.
 *
 * Derived from ggml-quants.c of llama.cpp: Copyright (c) 2023-2026 The ggml authors, MIT License.
 * Its text is in simd_search.h, which has the searches.
 */

#include "simd_search.h"

/* Σ x² of `count` rows, as ggml sums them; four at a time, since one sum has to wait for itself. */
static void sums_of_squares(const float *x, int64_t count, int64_t width, float *found) {
    for (int64_t row = 0; row < count; row += 4) {
        const float *at[4];
        float sums[4] = {0.f, 0.f, 0.f, 0.f};
        for (int k = 0; k < 4; k++) at[k] = x + (row + k < count ? row + k : row) * width;
        for (int64_t j = 0; j < width; j++) {
            for (int k = 0; k < 4; k++) sums[k] += at[k][j] * at[k][j];
        }
        for (int k = 0; k < 4 && row + k < count; k++) found[row + k] = sums[k];
    }
}

/* Put n values and their weights, qw · √(σ² + x²), into lane k. */
INLINE void load_some(int n, floats *x, floats *w, int k, const float *from,
                      const float *importance, float variance) {
    for (int j = 0; j < n; j++) {
        x[j][k] = from[j];
        w[j][k] = importance[j] * sqrtf(variance + from[j] * from[j]);
    }
}

static inline void load(floats *x, floats *w, int k, const float *from, const float *importance,
                        float variance) {
    load_some(GROUP, x, w, k, from, importance, variance);
}

/* Types of one group a block: bits 4 or 5, with a minimum or without. */
static void simple_blocks(const float *x, uint8_t *out, int64_t rows, int64_t width,
                          const float *importance, float *variances, int bits, int has_min) {
    const int64_t a_row = width / GROUP, count = rows * a_row;
    const int size = 2 + 2 * has_min + (bits == 5 ? 4 : 0) + GROUP / 2;
    sums_of_squares(x, rows, width, variances);
    for (int64_t row = 0; row < rows; row++) variances[row] /= width;
    for (int64_t first = 0; first < count; first += LANES) {
        floats values[GROUP], weights[GROUP], scale, min, sum;
        ints levels[GROUP];
        const int used = count - first < LANES ? (int)(count - first) : LANES;
        for (int k = 0; k < LANES; k++) {
            const int64_t block = first + (k < used ? k : 0);
            load(values, weights, k, x + block * GROUP, importance + block % a_row * GROUP,
                 variances[block / a_row]);
        }
        if (has_min) {
            search_scale_and_min(GROUP, (1 << bits) - 1, values, weights, levels, &scale, &min, &sum);
        } else {
            search_scale(GROUP, 1 << (bits - 1), values, weights, levels, &scale);
        }
        for (int k = 0; k < used; k++) {
            uint8_t *at = out + (first + k) * size;
            put_half(at, scale[k]);
            at += 2;
            if (has_min) {
                put_half(at, -min[k]);
                at += 2;
            }
            uint32_t fifth = 0;
            uint8_t *nibbles = at + (bits == 5 ? 4 : 0);
            for (int j = 0; j < GROUP / 2; j++) {
                const uint32_t low = levels[j][k], high = levels[j + GROUP / 2][k];
                nibbles[j] = (uint8_t)((low & 15) | (high & 15) << 4);
                fifth |= low >> 4 << j | high >> 4 << (j + GROUP / 2);
            }
            if (bits == 5) memcpy(at, &fifth, sizeof fifth);
        }
    }
}

/* make_qp_quants: n values that are positive or zero, levels up to nmax. */
INLINE float positive_scale(int n, int nmax, const float *x, uint8_t *L, const float *weights) {
    float max = 0;
    for (int i = 0; i < n; i++) max = max > x[i] ? max : x[i];
    if (max < EPSILON) {
        memset(L, 0, n);
        return 0.f;
    }
    float iscale = nmax / max;
    for (int i = 0; i < n; i++) L[i] = nearest_int(iscale * x[i]);
    const float scale = 1 / iscale;
    float best = 0;
    for (int i = 0; i < n; i++) {
        const float diff = x[i] - scale * L[i];
        best += weights[i] * diff * diff;
    }
    for (int is = -4; is <= 4; is++) {
        if (is == 0) continue;
        const float iscale_is = (0.1f * is + nmax) / max, scale_is = 1 / iscale_is;
        float mse = 0;
        for (int i = 0; i < n; i++) {
            int l = nearest_int(iscale_is * x[i]);
            l = l < nmax ? l : nmax;
            const float diff = x[i] - scale_is * l;
            mse += weights[i] * diff * diff;
        }
        if (mse < best) {
            best = mse;
            iscale = iscale_is;
        }
    }
    float sumlx = 0, suml2 = 0;
    for (int i = 0; i < n; i++) {
        int l = nearest_int(iscale * x[i]);
        l = l < nmax ? l : nmax;
        L[i] = l;
        sumlx += weights[i] * x[i] * l;
        suml2 += weights[i] * l * l;
    }
    for (int turn = 0; turn < 5; turn++) {
        int changed = 0;
        for (int i = 0; i < n; i++) {
            const float w = weights[i];
            float slx = sumlx - w * x[i] * L[i], sl2 = suml2 - w * L[i] * L[i];
            if (slx > 0 && sl2 > 0) {
                int new_l = nearest_int(x[i] * sl2 / slx);
                new_l = new_l < nmax ? new_l : nmax;
                if (new_l != L[i]) {
                    slx += w * x[i] * new_l;
                    sl2 += w * new_l * new_l;
                    if (slx * slx * suml2 > sumlx * sumlx * sl2) {
                        L[i] = new_l;
                        sumlx = slx;
                        suml2 = sl2;
                        changed++;
                    }
                }
            }
        }
        if (!changed) break;
    }
    return suml2 > 0.0f ? sumlx / suml2 : 0.0f;
}

/* The rest of quantize_row_q4_K_impl and quantize_row_q5_K_impl once the groups are searched. */
static void finish_super_block(const float *x, uint8_t *out, uint8_t *L, const float *scales,
                               const float *mins, const float *weights, int bits) {
    uint8_t Ls[GROUPS], Lm[GROUPS], *packed = out + 4;
    const float d_block = positive_scale(GROUPS, 63, scales, Ls, weights);
    const float m_block = positive_scale(GROUPS, 63, mins, Lm, weights);
    for (int j = 0; j < GROUPS; j++) {
        uint8_t ls = Ls[j], lm = Lm[j];
        if (bits == 5) {
            ls = ls < 63 ? ls : 63;
            lm = lm < 63 ? lm : 63;
        }
        if (j < 4) {
            packed[j] = ls;
            packed[j + 4] = lm;
        } else {
            packed[j + 4] = (ls & 0xF) | ((lm & 0xF) << 4);
            packed[j - 4] |= (ls >> 4) << 6;
            packed[j] |= (lm >> 4) << 6;
        }
    }
    put_half(out, d_block);
    put_half(out + 2, m_block);
    const float d_stored = from_half(to_half(d_block)), m_stored = from_half(to_half(m_block));
    const int highest = (1 << bits) - 1;
    for (int j = 0; j < GROUPS; j++) {
        uint8_t sc, m;
        if (j < 4) {
            sc = packed[j] & 63;
            m = packed[j + 4] & 63;
        } else {
            sc = (packed[j + 4] & 0xF) | ((packed[j - 4] >> 6) << 4);
            m = (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4);
        }
        const float d = d_stored * sc, dm = m_stored * m;
        if (!d) continue;
        for (int i = 0; i < GROUP; i++) {
            int l = nearest_int((x[GROUP * j + i] + dm) / d);
            l = l < highest ? l : highest;
            L[GROUP * j + i] = l > 0 ? l : 0;
        }
    }
    uint8_t *fifth = packed + 12, *nibbles = packed + 12 + (bits == 5 ? SUPER / 8 : 0);
    if (bits == 5) memset(fifth, 0, SUPER / 8);
    for (int pair = 0; pair < SUPER / 64; pair++) {
        const uint8_t *low = L + 64 * pair, *high = low + 32;
        for (int j = 0; j < 32; j++) {
            nibbles[32 * pair + j] = (low[j] & 15) | (uint8_t)((high[j] & 15) << 4);
            if (bits == 4) continue;
            fifth[j] |= (low[j] >> 4) << (2 * pair) | (high[j] >> 4) << (2 * pair + 1);
        }
    }
}

/* Q4_K and Q5_K: two super-blocks at a time fill whole lanes of every width. */
static void super_blocks(const float *x, uint8_t *out, int64_t rows, int64_t width,
                         const float *importance, int bits) {
    const int64_t a_row = width / SUPER, count = rows * a_row;
    const int size = 4 + 12 + (bits == 5 ? SUPER / 8 : 0) + SUPER / 2;
    for (int64_t first = 0; first < count; first += 2) {
        uint8_t L[2][SUPER];
        float scales[2 * GROUPS], mins[2 * GROUPS], sums[2 * GROUPS], squares[2];
        const int used = count - first < 2 ? 1 : 2;
        sums_of_squares(x + first * SUPER, used, SUPER, squares);
        for (int at = 0; at < 2 * GROUPS; at += LANES) {
            floats values[GROUP], weights[GROUP], scale, min, sum;
            ints levels[GROUP];
            for (int k = 0; k < LANES; k++) {
                const int which = (at + k) / GROUPS < used ? (at + k) / GROUPS : 0;
                const int group = (at + k) % GROUPS;
                const int64_t block = first + which;
                const float variance = 2 * squares[which] / SUPER;
                load(values, weights, k, x + block * SUPER + group * GROUP,
                     importance + block % a_row * SUPER + group * GROUP, variance);
            }
            search_scale_and_min(GROUP, (1 << bits) - 1, values, weights, levels, &scale, &min, &sum);
            for (int k = 0; k < LANES; k++) {
                scales[at + k] = scale[k];
                mins[at + k] = min[k];
                sums[at + k] = sum[k];
                for (int j = 0; j < GROUP; j++) {
                    L[(at + k) / GROUPS][(at + k) % GROUPS * GROUP + j] = (uint8_t)levels[j][k];
                }
            }
        }
        for (int which = 0; which < used; which++) {
            finish_super_block(x + (first + which) * SUPER, out + (first + which) * size, L[which],
                               scales + which * GROUPS, mins + which * GROUPS,
                               sums + which * GROUPS, bits);
        }
    }
}

/* quantize_row_q2_K_impl */
static void blocks_q2_k(const float *x, uint8_t *out, int64_t rows, int64_t width,
                        const float *importance) {
    const int64_t a_row = width / SUPER, count = rows * a_row;
    for (int64_t block = 0; block < count; block++, x += SUPER, out += 84) {
        uint8_t L[SUPER], Ls[SMALLS], Lm[SMALLS];
        float scales[SMALLS], mins[SMALLS], sums[SMALLS], squares;
        const float *weight = importance + block % a_row * SUPER;
        sums_of_squares(x, 1, SUPER, &squares);
        for (int at = 0; at < SMALLS; at += LANES) {
            floats values[SMALL], weights[SMALL], scale, min, sum;
            ints levels[SMALL];
            for (int k = 0; k < LANES; k++) {
                load_some(SMALL, values, weights, k, x + (at + k) * SMALL,
                          weight + (at + k) * SMALL, squares / SUPER);
            }
            search_scale_and_min(SMALL, 3, values, weights, levels, &scale, &min, &sum);
            for (int k = 0; k < LANES; k++) {
                scales[at + k] = scale[k];
                mins[at + k] = min[k];
                sums[at + k] = sum[k];
                for (int j = 0; j < SMALL; j++) L[(at + k) * SMALL + j] = (uint8_t)levels[j][k];
            }
        }
        const float d_block = positive_scale(SMALLS, 15, scales, Ls, sums);
        const float m_block = positive_scale(SMALLS, 15, mins, Lm, sums);
        put_half(out + 80, d_block);
        put_half(out + 82, m_block);
        const float d_stored = from_half(to_half(d_block)), m_stored = from_half(to_half(m_block));
        for (int j = 0; j < SMALLS; j++) {
            out[j] = Ls[j] | (uint8_t)(Lm[j] << 4);
            const float d = d_stored * (out[j] & 0xF), m = m_stored * (out[j] >> 4);
            if (!d) continue;
            for (int i = 0; i < SMALL; i++) {
                int l = nearest_int((x[SMALL * j + i] + m) / d);
                l = l < 3 ? l : 3;
                L[SMALL * j + i] = l > 0 ? l : 0;
            }
        }
        for (int half = 0; half < 2; half++) {
            const uint8_t *at = L + 128 * half;
            for (int l = 0; l < 32; l++) {
                out[16 + 32 * half + l] =
                    at[l] | at[l + 32] << 2 | at[l + 64] << 4 | (uint8_t)(at[l + 96] << 6);
            }
        }
    }
}

/* make_qx_quants with 16 values, middle 32 and rmse_type 1, for the scales of one block. */
static float signed_scale(const float *x, uint8_t *L, const float *weights) {
    const int n = SMALLS, middle = 32;
    float max = 0, largest = 0;
    for (int i = 0; i < n; i++) {
        const float size = fabsf(x[i]);
        if (size > largest) {
            largest = size;
            max = x[i];
        }
    }
    memset(L, 0, n);
    if (largest < EPSILON) return 0.f;
    float scale = 0, best = 0, best_inverse = 0;
    for (int turn = -10; turn <= 9; turn++) { /* the first is apart: it is taken without question */
        if (turn == 0) continue;
        const float inverse = turn == -10 ? -middle / max : -(middle + 0.1f * turn) / max;
        float sum_lx = 0, sum_l2 = 0;
        for (int i = 0; i < n; i++) {
            int l = nearest_int(inverse * x[i]);
            l = l < middle - 1 ? l : middle - 1;
            l = l > -middle ? l : -middle;
            sum_lx += weights[i] * x[i] * l;
            sum_l2 += weights[i] * l * l;
        }
        if (turn == -10) {
            scale = sum_l2 ? sum_lx / sum_l2 : 0.0f;
        } else if (sum_l2 > 0 && sum_lx * sum_lx > best * sum_l2) {
            scale = sum_lx / sum_l2;
        } else {
            continue;
        }
        best = scale * sum_lx;
        best_inverse = inverse;
    }
    for (int i = 0; i < n; i++) {
        int l = nearest_int(best_inverse * x[i]);
        l = l < middle - 1 ? l : middle - 1;
        L[i] = (l > -middle ? l : -middle) + middle;
    }
    return scale;
}

/* quantize_row_q3_K_impl */
static void blocks_q3_k(const float *x, uint8_t *out, int64_t rows, int64_t width,
                        const float *importance) {
    const int64_t a_row = width / SUPER, count = rows * a_row;
    for (int64_t block = 0; block < count; block++, x += SUPER, out += 110) {
        uint8_t L[SUPER], Ls[SMALLS], *packed = out + 96;
        float scales[SMALLS], sums[SMALLS], squares;
        const float *weight = importance + block % a_row * SUPER;
        sums_of_squares(x, 1, SUPER, &squares);
        for (int at = 0; at < SMALLS; at += LANES) {
            floats values[SMALL], weights[SMALL], scale, sum = all(0.f);
            ints levels[SMALL];
            for (int k = 0; k < LANES; k++) {
                load_some(SMALL, values, weights, k, x + (at + k) * SMALL,
                          weight + (at + k) * SMALL, 2 * squares / SUPER);
            }
            for (int j = 0; j < SMALL; j++) sum += weights[j];
            search_scale(SMALL, 4, values, weights, levels, &scale);
            for (int k = 0; k < LANES; k++) {
                scales[at + k] = scale[k];
                sums[at + k] = sum[k];
                for (int j = 0; j < SMALL; j++) L[(at + k) * SMALL + j] = (uint8_t)levels[j][k];
            }
        }
        memset(out, 0, 110);
        const float d_block = signed_scale(scales, Ls, sums);
        for (int j = 0; j < SMALLS; j++) {
            packed[j % 8] |= (Ls[j] & 0xF) << (j < 8 ? 0 : 4);
            packed[8 + j % 4] |= (Ls[j] >> 4) << 2 * (j / 4);
        }
        put_half(out + 108, d_block);
        const float d_stored = from_half(to_half(d_block));
        for (int j = 0; j < SMALLS; j++) {
            const float d = d_stored * ((int)Ls[j] - 32);
            if (!d) continue;
            for (int i = 0; i < SMALL; i++) {
                int l = nearest_int(x[SMALL * j + i] / d);
                l = l < 3 ? l : 3;
                L[SMALL * j + i] = (l > -4 ? l : -4) + 4;
            }
        }
        for (int j = 0; j < SUPER; j++) {
            out[j % 32] |= (L[j] >> 2) << j / 32;
            out[32 + j / 128 * 32 + j % 32] |= (L[j] & 3) << j % 128 / 32 * 2;
        }
    }
}

/* quantize_row_q6_K_impl: the importance itself is the weight */
static void blocks_q6_k(const float *x, uint8_t *out, int64_t rows, int64_t width,
                        const float *importance) {
    const int64_t a_row = width / SUPER, count = rows * a_row;
    for (int64_t block = 0; block < count; block++, x += SUPER, out += 210) {
        uint8_t L[SUPER];
        float scales[SMALLS], largest = 0, max_scale = 0;
        const float *weight = importance + block % a_row * SUPER;
        for (int at = 0; at < SMALLS; at += LANES) {
            floats values[SMALL], weights[SMALL], scale;
            ints levels[SMALL];
            for (int k = 0; k < LANES; k++) {
                for (int j = 0; j < SMALL; j++) {
                    values[j][k] = x[(at + k) * SMALL + j];
                    weights[j][k] = weight[(at + k) * SMALL + j];
                }
            }
            search_scale(SMALL, 32, values, weights, levels, &scale);
            for (int k = 0; k < LANES; k++) {
                scales[at + k] = scale[k];
                for (int j = 0; j < SMALL; j++) L[(at + k) * SMALL + j] = (uint8_t)levels[j][k];
            }
        }
        for (int j = 0; j < SMALLS; j++) {
            const float size = fabsf(scales[j]);
            if (size > largest) {
                largest = size;
                max_scale = scales[j];
            }
        }
        memset(out, 0, 210);
        if (largest < EPSILON) continue;
        const float inverse = -128.f / max_scale;
        put_half(out + 208, 1 / inverse);
        const float d_stored = from_half(to_half(1 / inverse));
        for (int j = 0; j < SMALLS; j++) {
            const int found = nearest_int(inverse * scales[j]);
            const int8_t stored = found < 127 ? found : 127;
            out[192 + j] = (uint8_t)stored;
            const float d = d_stored * stored;
            if (!d) continue;
            for (int i = 0; i < SMALL; i++) {
                int l = nearest_int(x[SMALL * j + i] / d);
                l = l < 31 ? l : 31;
                L[SMALL * j + i] = (l > -32 ? l : -32) + 32;
            }
        }
        for (int half = 0; half < 2; half++) {
            const uint8_t *at = L + 128 * half;
            uint8_t *low = out + 64 * half, *high = out + 128 + 32 * half;
            for (int l = 0; l < 32; l++) {
                low[l] = (at[l] & 0xF) | (uint8_t)((at[l + 64] & 0xF) << 4);
                low[l + 32] = (at[l + 32] & 0xF) | (uint8_t)((at[l + 96] & 0xF) << 4);
                high[l] = at[l] >> 4 | (at[l + 32] >> 4) << 2 | (at[l + 64] >> 4) << 4 |
                          (at[l + 96] >> 4) << 6;
            }
        }
    }
}

/* The indices of GROUP values a lane, two in a byte, as IQ4_NL and IQ4_XS pack them. */
static void pack_iq4(const ints *index, int k, uint8_t *nibbles) {
    for (int j = 0; j < GROUP / 2; j++) {
        nibbles[j] = (uint8_t)(index[j][k] | index[j + GROUP / 2][k] << 4);
    }
}

static void blocks_iq4_nl(const float *x, uint8_t *out, int64_t rows, int64_t width,
                          const float *importance) {
    const int64_t a_row = width / GROUP, count = rows * a_row;
    for (int64_t first = 0; first < count; first += LANES) {
        floats values[GROUP], weights[GROUP];
        ints index[GROUP];
        float squares[LANES];
        const int used = count - first < LANES ? (int)(count - first) : LANES;
        sums_of_squares(x + first * GROUP, used, GROUP, squares);
        for (int k = 0; k < LANES; k++) {
            const int which = k < used ? k : 0;
            load(values, weights, k, x + (first + which) * GROUP,
                 importance + (first + which) % a_row * GROUP, squares[which] * (2.f / GROUP));
        }
        const floats scale = search_iq4(values, weights);
        const floats inverse = select_floats(scale != 0.f, all(1.f) / scale, all(0.f));
        for (int j = 0; j < GROUP; j++) index[j] = index_iq4(inverse * values[j]);
        for (int k = 0; k < used; k++) {
            put_half(out + (first + k) * 18, scale[k]);
            pack_iq4(index, k, out + (first + k) * 18 + 2);
        }
    }
}

/* Two super-blocks at a time, as in `super_blocks`. */
static void blocks_iq4_xs(const float *x, uint8_t *out, int64_t rows, int64_t width,
                          const float *importance) {
    const int64_t a_row = width / SUPER, count = rows * a_row;
    for (int64_t first = 0; first < count; first += 2) {
        floats values[2 * GROUPS / LANES][GROUP], weights[GROUP];
        float scales[2 * GROUPS], inverses[2 * GROUPS], squares[2];
        const int used = count - first < 2 ? 1 : 2;
        sums_of_squares(x + first * SUPER, used, SUPER, squares);
        for (int part = 0; part < 2 * GROUPS / LANES; part++) {
            for (int k = 0; k < LANES; k++) {
                const int at = part * LANES + k;
                const int which = at / GROUPS < used ? at / GROUPS : 0;
                const int64_t block = first + which;
                load(values[part], weights, k, x + block * SUPER + at % GROUPS * GROUP,
                     importance + block % a_row * SUPER + at % GROUPS * GROUP,
                     squares[which] * (2.f / SUPER));
            }
            const floats scale = search_iq4(values[part], weights);
            for (int k = 0; k < LANES; k++) scales[part * LANES + k] = scale[k];
        }
        for (int which = 0; which < used; which++) {
            uint8_t *at = out + (first + which) * 136;
            float largest = 0, max_scale = 0;
            for (int group = 0; group < GROUPS; group++) {
                const float scale = scales[which * GROUPS + group], size = fabsf(scale);
                if (size > largest) {
                    largest = size;
                    max_scale = scale;
                }
            }
            const float d = -max_scale / 32, id = d ? 1 / d : 0.f;
            uint16_t high = 0;
            put_half(at, d);
            for (int group = 0; group < GROUPS; group++) {
                int l = nearest_int(id * scales[which * GROUPS + group]);
                l = l < 31 ? l : 31;
                l = l > -32 ? l : -32;
                const float dl = d * l;
                inverses[which * GROUPS + group] = dl ? 1 / dl : 0.f;
                l += 32;
                const uint8_t low = l & 0xf;
                if (group % 2 == 0) at[4 + group / 2] = low;
                else at[4 + group / 2] |= low << 4;
                high |= (l >> 4) << 2 * group;
            }
            memcpy(at + 2, &high, sizeof high);
        }
        for (int part = 0; part < 2 * GROUPS / LANES; part++) {
            ints index[GROUP];
            floats inverse;
            const int groups = used * GROUPS - part * LANES;
            for (int k = 0; k < LANES; k++) {
                inverse[k] = k < groups ? inverses[part * LANES + k] : 0;
            }
            for (int j = 0; j < GROUP; j++) index[j] = index_iq4(inverse * values[part][j]);
            for (int k = 0; k < LANES && k < groups; k++) {
                const int at = part * LANES + k;
                pack_iq4(index, k, out + (first + at / GROUPS) * 136 + 8 + at % GROUPS * GROUP / 2);
            }
        }
    }
}

/* Each: `rows` × `width` values to blocks; `importance` has `width`, `scratch` `rows` values. */
#define PART const float *x, uint8_t *out, int64_t rows, int64_t width, const float *importance, \
             float *scratch

void quantkit_Q4_0(PART) { simple_blocks(x, out, rows, width, importance, scratch, 4, 0); }
void quantkit_Q5_0(PART) { simple_blocks(x, out, rows, width, importance, scratch, 5, 0); }
void quantkit_Q4_1(PART) { simple_blocks(x, out, rows, width, importance, scratch, 4, 1); }
void quantkit_Q5_1(PART) { simple_blocks(x, out, rows, width, importance, scratch, 5, 1); }
void quantkit_Q4_K(PART) { (void)scratch; super_blocks(x, out, rows, width, importance, 4); }
void quantkit_IQ4_NL(PART) { (void)scratch; blocks_iq4_nl(x, out, rows, width, importance); }
void quantkit_IQ4_XS(PART) { (void)scratch; blocks_iq4_xs(x, out, rows, width, importance); }
void quantkit_Q2_K(PART) { (void)scratch; blocks_q2_k(x, out, rows, width, importance); }
void quantkit_Q3_K(PART) { (void)scratch; blocks_q3_k(x, out, rows, width, importance); }
void quantkit_Q6_K(PART) { (void)scratch; blocks_q6_k(x, out, rows, width, importance); }
void quantkit_Q5_K(PART) { (void)scratch; super_blocks(x, out, rows, width, importance, 5); }
