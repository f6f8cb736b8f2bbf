// Owns the precompiled header of libtorch; see CMakeLists.txt.
