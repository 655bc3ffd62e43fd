// What an HDF5 file holds, found out by a short-lived child process.
//
// The HDF5 library trusts the files that it reads: damaged or hostile metadata can make it crash, loop or ask for any
// amount of memory. So models, which are strangers' files, are never opened with it in this process. A forked child
// opens the file, lists it and sends the list through a pipe; it may take kInventoryCpuSeconds of processor time (a
// slow file system costs none) and kInventoryBytes of memory. Whatever happens to it is one Hdf5Error here. The child
// touches nothing but the file and the pipe, runs no exit handlers, and leaves no core, so forking is safe after
// MPI_Init and beside other threads. Weights are read by offset, without the library.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/hdf5_file.hpp"

namespace stagecoach {

constexpr std::int64_t kInventoryCpuSeconds = 2;
constexpr std::int64_t kInventoryBytes = std::int64_t{1} << 30;

struct H5Inventory {
  std::vector<H5Dataset> datasets;                                    // in the order of their paths
  std::map<std::pair<std::string, std::string>, H5Value> attributes;  // by object and name

  // None when `object` has no such attribute, or it was not asked for.
  std::optional<H5Value> attribute(const std::string& object, const std::string& name) const;
};

// All datasets, and of the attributes these: `of_root` of the root, `of_datasets` of each dataset. Throws Hdf5Error,
// also when one of them holds something other than one H5Value.
H5Inventory inventory_of(const std::string& path, const std::vector<std::string>& of_root,
                         const std::vector<std::string>& of_datasets);

}  // namespace stagecoach
