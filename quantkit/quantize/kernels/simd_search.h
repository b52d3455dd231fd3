/* The searches of `simd.c`: scales and minima of LANES groups of weights at a time, one a lane.
 *
 * Derived from ggml-quants.c and ggml-impl.h of llama.cpp (2026-10-01), which are under the MIT
 * License:
 *
 * Copyright (c) 2023-2026 The ggml authors
 *
 * Permission is hereby granted, free of charge, to any person obtaining a copy of this software
 * and associated documentation files (the "Software"), to deal in the Software without
 * restriction, including without limitation the rights to use, copy, modify, merge, publish,
 * distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the
 * Software is furnished to do so, subject to the following conditions:
 *
 * The above copyright notice and this permission notice shall be included in all copies or
 * substantial portions of the Software.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
 * NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
 * NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
 * DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
 * OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

#define GROUP 32      /* values that share a scale */
#define SUPER 256     /* QK_K: values of a K-quant's block */
#define GROUPS (SUPER / GROUP)
#define SMALL 16      /* the same in Q2_K, Q3_K and Q6_K */
#define SMALLS (SUPER / SMALL)
#define INLINE static inline __attribute__((always_inline))
#define EPSILON 1e-15f /* GROUP_MAX_EPS */

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

static inline floats all(float value) {
    floats made;
    for (int k = 0; k < LANES; k++) made[k] = value;
    return made;
}

static inline floats select_floats(ints mask, floats yes, floats no) {
    return (floats)(((ints)yes & mask) | ((ints)no & ~mask));
}

static inline ints select_ints(ints mask, ints yes, ints no) {
    return (yes & mask) | (no & ~mask);
}

static inline floats to_floats(ints value) { return __builtin_convertvector(value, floats); }

/* nearest_int, then MAX(low, MIN(high, …)) */
static inline ints nearest(floats value, int low, int high) {
    ints bits = (ints)(value + 12582912.f);
    ints found = (bits & 0x007fffff) - 0x00400000;
    found = select_ints(found < high, found, (ints){0} + high);
    return select_ints(found > low, found, (ints){0} + low);
}

static inline int nearest_int(float value) {
    float moved = value + 12582912.f;
    int32_t bits;
    memcpy(&bits, &moved, sizeof bits);
    return (bits & 0x007fffff) - 0x00400000;
}

static inline float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float from_half(uint16_t half) {
    const uint32_t w = (uint32_t)half << 16, sign = w & 0x80000000u, two_w = w + w;
    const float normal = from_bits((two_w >> 4) + (0xE0u << 23)) * 0x1.0p-112f;
    const float subnormal = from_bits((two_w >> 17) | (126u << 23)) - 0.5f;
    return from_bits(sign | to_bits(two_w < (1u << 27) ? subnormal : normal));
}

static uint16_t to_half(float value) {
    float base = (fabsf(value) * 0x1.0p+112f) * 0x1.0p-110f;
    const uint32_t w = to_bits(value), doubled = w + w, sign = w & 0x80000000u;
    uint32_t bias = doubled & 0xFF000000u;
    if (bias < 0x71000000u) bias = 0x71000000u;
    base = from_bits((bias >> 1) + 0x07800000u) + base;
    const uint32_t bits = to_bits(base);
    const uint32_t unsigned_half = ((bits >> 13) & 0x7C00u) + (bits & 0x0FFFu);
    return (uint16_t)((sign >> 16) | (doubled > 0xFF000000u ? 0x7E00u : unsigned_half));
}

static void put_half(uint8_t *at, float value) {
    const uint16_t half = to_half(value);
    memcpy(at, &half, sizeof half);
}

/* make_qkx3_quants with n values, rmin -0.9, rdelta 0.05, 36 steps: a scale and a minimum. */
INLINE void search_scale_and_min(int n, int highest, const floats *x, const floats *w, ints *levels,
                                 floats *scale_found, floats *min_found, floats *weight_found) {
    floats min = x[0], max = x[0], sum_w = w[0], sum_x = sum_w * x[0];
    for (int i = 1; i < n; i++) {
        min = select_floats(x[i] < min, x[i], min);
        max = select_floats(x[i] > max, x[i], max);
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    min = select_floats(min > 0.f, all(0.f), min);
    const ints flat = max <= min; /* ggml returns at once: scale 0, this minimum, levels 0 */
    const floats first_min = min;
    floats inverse = all((float)highest) / (max - min);
    floats scale = all(1.f) / inverse, best = all(0.f);
    for (int i = 0; i < n; i++) {
        levels[i] = nearest(inverse * (x[i] - min), 0, highest);
        const floats difference = scale * to_floats(levels[i]) + min - x[i];
        best += w[i] * (difference * difference);
    }
    for (int step = 0; step <= 36; step++) {
        ints tried[GROUP];
        inverse = all(-0.9f + 0.05f * step + highest) / (max - min);
        floats sum_l = all(0.f), sum_l2 = all(0.f), sum_xl = all(0.f);
        for (int i = 0; i < n; i++) {
            tried[i] = nearest(inverse * (x[i] - min), 0, highest);
            const floats l = to_floats(tried[i]), wl = w[i] * l;
            sum_l += wl;
            sum_l2 += wl * l;
            sum_xl += wl * x[i];
        }
        const floats D = sum_w * sum_l2 - sum_l * sum_l;
        floats this_scale = (sum_w * sum_xl - sum_x * sum_l) / D;
        floats this_min = (sum_l2 * sum_x - sum_l * sum_xl) / D;
        const ints above = this_min > 0.f;
        this_min = select_floats(above, all(0.f), this_min);
        this_scale = select_floats(above, sum_xl / sum_l2, this_scale);
        floats error = all(0.f);
        for (int i = 0; i < n; i++) {
            const floats difference = this_scale * to_floats(tried[i]) + this_min - x[i];
            error += w[i] * (difference * difference);
        }
        const ints better = (D > 0.f) & (error < best);
        for (int i = 0; i < n; i++) levels[i] = select_ints(better, tried[i], levels[i]);
        best = select_floats(better, error, best);
        scale = select_floats(better, this_scale, scale);
        min = select_floats(better, this_min, min);
    }
    for (int i = 0; i < n; i++) levels[i] &= ~flat;
    *scale_found = select_floats(flat, all(0.f), scale);
    *min_found = -select_floats(flat, first_min, min);
    *weight_found = sum_w;
}

/* The first of the n values that is furthest from 0, with its sign; `largest` without it. */
INLINE floats furthest(int n, const floats *x, floats *largest) {
    floats max = all(0.f);
    *largest = all(0.f);
    for (int i = 0; i < n; i++) {
        const floats size = (floats)((ints)x[i] & 0x7fffffff);
        const ints larger = size > *largest;
        *largest = select_floats(larger, size, *largest);
        max = select_floats(larger, x[i], max);
    }
    return max;
}

/* make_qx_quants with n values and rmse_type 1: a scale, and levels from 0 to 2 · middle - 1. */
INLINE void search_scale(int n, int middle, const floats *x, const floats *w, ints *levels,
                         floats *scale_found) {
    floats largest;
    const floats max = furthest(n, x, &largest);
    const ints zero = largest < EPSILON;
    floats inverse = all((float)-middle) / max, best_inverse = inverse;
    floats sum_lx = all(0.f), sum_l2 = all(0.f);
    for (int i = 0; i < n; i++) {
        const floats l = to_floats(nearest(inverse * x[i], -middle, middle - 1));
        sum_lx += w[i] * x[i] * l;
        sum_l2 += w[i] * l * l;
    }
    floats scale = select_floats(sum_l2 != 0.f, sum_lx / sum_l2, all(0.f));
    floats best = scale * sum_lx;
    for (int step = -9; step <= 9; step++) {
        if (step == 0) continue;
        inverse = all(-(middle + 0.1f * step)) / max;
        sum_lx = sum_l2 = all(0.f);
        for (int i = 0; i < n; i++) {
            const floats l = to_floats(nearest(inverse * x[i], -middle, middle - 1));
            sum_lx += w[i] * x[i] * l;
            sum_l2 += w[i] * l * l;
        }
        const ints better = (sum_l2 > 0.f) & (sum_lx * sum_lx > best * sum_l2);
        best_inverse = select_floats(better, inverse, best_inverse);
        scale = select_floats(better, sum_lx / sum_l2, scale);
        best = select_floats(better, scale * sum_lx, best);
    }
    for (int i = 0; i < n; i++) {
        levels[i] = nearest(best_inverse * x[i], -middle, middle - 1) + middle;
        levels[i] &= ~zero;
    }
    *scale_found = select_floats(zero, all(0.f), scale);
}

/* kvalues_iq4nl, and from where on best_index_int8 takes the second of two neighbours. */
#define VALUES 16
static const float values_iq4[VALUES] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                         1,    13,   25,  38,  53,  69,  89,  113};
static float first_of[VALUES];

__attribute__((constructor)) static void find_thresholds(void) {
    for (int m = 1; m < VALUES; m++) {
        float below = values_iq4[m - 1], above = values_iq4[m];
        for (int turn = 0; turn < 64; turn++) { /* until they are neighbouring numbers */
            const float middle = below + (above - below) / 2;
            if (middle <= below || middle >= above) break;
            if (middle - values_iq4[m - 1] < values_iq4[m] - middle) below = middle;
            else above = middle;
        }
        first_of[m] = above;
    }
}

/* best_index_int8, which ends at the last value for a NaN */
static inline ints index_iq4(floats x) {
    ints index = (ints){0};
    for (int m = 1; m < VALUES; m++) index -= ~(x < first_of[m]);
    return index;
}

/* values_iq4[index_iq4(x)] */
static inline floats value_iq4(floats x) {
    ints value = (ints){0} + (int)values_iq4[0];
    for (int m = 1; m < VALUES; m++) {
        value += ~(x < first_of[m]) & (int)(values_iq4[m] - values_iq4[m - 1]);
    }
    return to_floats(value);
}

/* The search of quantize_row_iq4_nl_impl with 7 tries on each side: a scale. */
static floats search_iq4(const floats *x, const floats *w) {
    floats largest;
    const floats max = furthest(GROUP, x, &largest);
    const ints zero = largest < EPSILON;
    floats scale = all(0.f), best = all(0.f);
    for (int step = -8; step <= 7; step++) { /* the first is apart: it is taken without question */
        const floats inverse = step == -8 ? all(1.f) / (-max / all(values_iq4[0]))
                                          : all((float)(step - 127)) / max;
        floats sum_qx = all(0.f), sum_q2 = all(0.f);
        for (int i = 0; i < GROUP; i++) {
            const floats q = value_iq4(inverse * x[i]);
            sum_qx += w[i] * q * x[i];
            sum_q2 += w[i] * q * q;
        }
        if (step == -8) {
            scale = select_floats(sum_q2 > 0.f, sum_qx / sum_q2, all(0.f));
            best = scale * sum_qx;
            continue;
        }
        const ints better = (sum_q2 > 0.f) & (sum_qx * sum_qx > best * sum_q2);
        scale = select_floats(better, sum_qx / sum_q2, scale);
        best = select_floats(better, scale * sum_qx, best);
    }
    return select_floats(zero, all(0.f), scale);
}
