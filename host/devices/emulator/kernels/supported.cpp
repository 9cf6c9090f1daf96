// Which kernels this processor can run. Compiled without any of their flags.
#include "engine.h"

#if defined(__x86_64__) || defined(__i386__)
int supported_avx2() { return __builtin_cpu_supports("avx2") != 0; }
int supported_vnni() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}
#else
int supported_avx2() { return 0; }
int supported_vnni() { return 0; }
#endif
int supported_portable() { return 1; }
