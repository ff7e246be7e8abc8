// SPDX-License-Identifier: GPL-2.0-or-later
/* An LV that grows while it is written to: by how much, and when. */
#include <qchain/lvm.h>

/* Half of a chunk is what is left when it is time: twice what an extension takes. */
#define SAFETY 4u

/* Of what the VG has left, for one that writes fast for a moment. */
#define SHARE 4u

u64 lvm_thin_chunk(u64 least, u64 vg_free, u64 written, u64 ns, u64 extend_ns)
{
	double per_extension;
	u64 wanted;

	if (!ns)
		return least;
	per_extension = (double)written / ns * extend_ns;
	wanted = ALIGN_UP((u64)(per_extension * SAFETY), MiB);
	return max(least, min(wanted, vg_free / SHARE));
}

u64 lvm_thin_watermark(u64 bytes, u64 chunk)
{
	return bytes - min(bytes, chunk / 2);
}
