// SPDX-License-Identifier: GPL-2.0-or-later
/* An LV that grows while it is written to: by how much, and when. */
#include <qchain/lvm.h>

/* Half of a chunk is what is left when it is time: twice what an extension takes. */
#define SAFETY 4u

u64 lvm_thin_chunk(u64 least, u64 written, u64 ns, u64 extend_ns)
{
	double per_extension;

	if (!ns)
		return least;
	per_extension = (double)written / ns * extend_ns;
	return max(least, ALIGN_UP((u64)(per_extension * SAFETY), MiB));
}

u64 lvm_thin_watermark(u64 bytes, u64 chunk)
{
	return bytes - min(bytes, chunk / 2);
}
