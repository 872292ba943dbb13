/// Which Espalier this is.
#pragma once

namespace espalier {

const char* version();  ///< "0.1.0"
/// The commit that was built, as `git describe --always --dirty` names it; "" if built outside a repository.
const char* commit();

}  // namespace espalier
