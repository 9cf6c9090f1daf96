// The inner loop with AVX512-VNNI: four products and their sum in one instruction, wrapping in 32 bits.
#pragma once
#include <cstring>
#include <immintrin.h>

// As many accumulators as registers allow beside the weights.
constexpr int most_pixels(int blocks) { return blocks == 4 ? 6 : 8; }

template <int P, int B>
static void tile(const uint8_t *const *pixels, const int32_t *offsets, int64_t first, int64_t end,
                 const int8_t *weights, int32_t *acc) {
    __m512i a[P][B];
    const uint8_t *x[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; p++) {
        x[p] = pixels[p];
#pragma GCC unroll 4
        for (int b = 0; b < B; b++) a[p][b] = _mm512_loadu_si512(acc + (p * B + b) * 16);
    }
    weights += first * B * 64;
    for (int64_t q = first; q < end; q++, weights += B * 64) {
        const int64_t offset = offsets[q];
        __m512i w[B];
#pragma GCC unroll 4
        for (int b = 0; b < B; b++) w[b] = _mm512_loadu_si512(weights + b * 64);
#pragma GCC unroll 8
        for (int p = 0; p < P; p++) {
            int32_t four;
            std::memcpy(&four, x[p] + offset, 4);
            const __m512i f = _mm512_set1_epi32(four);
#pragma GCC unroll 4
            for (int b = 0; b < B; b++) a[p][b] = _mm512_dpbusd_epi32(a[p][b], f, w[b]);
        }
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; p++)
#pragma GCC unroll 4
        for (int b = 0; b < B; b++) _mm512_storeu_si512(acc + (p * B + b) * 16, a[p][b]);
}
