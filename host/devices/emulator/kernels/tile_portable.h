// The inner loop in plain C++.
#pragma once
#include <cstring>

constexpr int most_pixels(int) { return 4; }

// Quads first to end - 1 of B blocks of 16 outputs at P pixels: acc[p][b][16] += features * weights, in 32 bits that
// wrap. Features count as value + 128, 0 to 255.
template <int P, int B>
static void tile(const uint8_t *const *pixels, const int32_t *offsets, int64_t first, int64_t end,
                 const int8_t *weights, int32_t *acc) {
    weights += first * B * 64;
    for (int64_t q = first; q < end; q++, weights += B * 64)
        for (int p = 0; p < P; p++) {
            const uint8_t *x = pixels[p] + offsets[q];
            for (int b = 0; b < B; b++)
                for (int i = 0; i < 16; i++) {
                    uint32_t sum = 0;
                    for (int j = 0; j < 4; j++)
                        sum += (uint32_t)(int32_t(x[j]) * int32_t(weights[(b * 16 + i) * 4 + j]));
                    int32_t *a = acc + (p * B + b) * 16 + i;
                    *a = int32_t(uint32_t(*a) + sum);
                }
        }
}
