#pragma once

// OpenMP's header where the compiler has OpenMP; without it, one thread.

#ifdef _OPENMP
#include_next <omp.h>
#else
inline int omp_get_max_threads() { return 1; }
inline int omp_get_num_threads() { return 1; }
inline int omp_get_thread_num() { return 0; }
inline int omp_in_parallel() { return 0; }
#endif
