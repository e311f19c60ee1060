#pragma once

// Pages of the system: what the pool keeps them in, and gives back.

#include <cstddef>

namespace torch_helion {

// Physical memory, or the container's share of it.
std::size_t memory_size();

// Whether pages of one mapping may be unmapped apart.
#ifdef _WIN32
constexpr bool kPagesUnmapApart = false;
#else
constexpr bool kPagesUnmapApart = true;
#endif

// nullptr when there is no memory. Large blocks start on a huge page.
void* map_pages(std::size_t size);
void unmap_pages(void* data, std::size_t size);

} // namespace torch_helion
