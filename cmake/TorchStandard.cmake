# The language standard follows torch: its headers need C++20 from 2.12 on, and clang 14 cannot read those of 1.13 as
# C++20. Our own code is the common subset. -DCMAKE_CXX_STANDARD=… overrides.
if(NOT CMAKE_CXX_STANDARD)
  if(Torch_VERSION AND Torch_VERSION VERSION_GREATER_EQUAL 2.12)
    set(CMAKE_CXX_STANDARD 20)
  else()
    set(CMAKE_CXX_STANDARD 17)
  endif()
endif()
