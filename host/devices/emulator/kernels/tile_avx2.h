// The inner loop with AVX2. Pairs of 16-bit products are summed in 32 bits, which is exact; `vpmaddubsw` would saturate.
#pragma once
#include <cstring>
#include <immintrin.h>

constexpr int most_pixels(int) { return 2; }

template <int P>
static inline __attribute__((always_inline)) void block(const uint8_t *const *pixels, const int32_t *offsets,
                                                        int64_t first, int64_t end, const int8_t *weights,
                                                        int64_t stride, int32_t *acc, int64_t acc_stride) {
    // Each register holds four outputs' two partial sums.
    __m256i a[P][4];
    for (int p = 0; p < P; p++)
        for (int i = 0; i < 4; i++) a[p][i] = _mm256_setzero_si256();
    weights += first * stride;
    for (int64_t q = first; q < end; q++, weights += stride) {
        __m256i x[P];
        for (int p = 0; p < P; p++) {
            int32_t four;
            std::memcpy(&four, pixels[p] + offsets[q], 4);
            x[p] = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(four)));
        }
        for (int i = 0; i < 4; i++) {
            __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(weights + i * 16)));
            for (int p = 0; p < P; p++) a[p][i] = _mm256_add_epi32(a[p][i], _mm256_madd_epi16(x[p], w));
        }
    }
    for (int p = 0; p < P; p++)
        for (int i = 0; i < 2; i++) {
            __m256i sum = _mm256_hadd_epi32(a[p][2 * i], a[p][2 * i + 1]);
            sum = _mm256_permute4x64_epi64(sum, 0xD8);
            __m256i *to = (__m256i *)(acc + p * acc_stride + i * 8);
            _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), sum));
        }
}

template <int P, int B>
static void tile(const uint8_t *const *pixels, const int32_t *offsets, int64_t first, int64_t end,
                 const int8_t *weights, int32_t *acc) {
    for (int b = 0; b < B; b++)
        block<P>(pixels, offsets, first, end, weights + b * 64, B * 64, acc + b * 16, B * 16);
}
