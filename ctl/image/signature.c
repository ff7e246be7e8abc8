// SPDX-License-Identifier: GPL-2.0-or-later
/* Recognises images, file systems and partition tables by their first bytes. */
#include "signature.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* All known places lie before this; a btrfs superblock is the last. */
#define SIGNATURE_BYTES (68u * 1024u)

/*
 * A free LV holds old bytes of any kind, so only what begins here counts: what
 * is not in this table may be overwritten. Longer magics come before shorter
 * ones at the same place.
 */
static const struct signature {
	u32 offset;
	u32 len;
	const char *magic;
	const char *name;
} signatures[] = {
	{ 0, 4, "QFI\xfb", "a qcow2 image" },
	{ 0, 4, "QED\0", "a QED image" },
	{ 0, 4, "KDMV", "a VMDK image" },
	{ 0, 8, "conectix", "a VHD image" },
	{ 0, 8, "vhdxfile", "a VHDX image" },
	{ 64, 4, "\x7f\x10\xda\xbe", "a VDI image" },
	{ 0, 6, "LUKS\xba\xbe", "a LUKS volume" },
	{ 0, 4, "XFSB", "an XFS file system" },
	{ 1080, 2, "\x53\xef", "an ext2, ext3 or ext4 file system" },
	{ 65600, 8, "_BHRfS_M", "a btrfs file system" },
	{ 4120, 8, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "a bcache device" },
	{ 1024, 4, "\x10\x20\xf5\xf2", "an F2FS file system" },
	{ 0, 4, "hsqs", "a squashfs file system" },
	{ 32769, 5, "CD001", "an ISO 9660 file system" },
	{ 3, 8, "NTFS    ", "an NTFS file system" },
	{ 54, 3, "FAT", "a FAT file system" },
	{ 82, 5, "FAT32", "a FAT file system" },
	{ 65536, 4, "\x01\x16\x19\x70", "a GFS2 file system" },
	{ 4086, 10, "SWAPSPACE2", "swap space" },
	{ 536, 8, "LVM2 001", "an LVM physical volume" },
	{ 24, 8, "LVM2 001", "an LVM physical volume" },
	{ 4096, 4, "\xfc\x4e\x2b\xa9", "an md member" },
	{ 0, 4, "\xfc\x4e\x2b\xa9", "an md member" },
	{ 512, 8, "EFI PART", "a GPT partition table" },
	{ 510, 2, "\x55\xaa", "a boot sector or partition table" },
};

int signature_find(struct io_dev *dev, const char **result)
{
	u64 bytes = min(dev->size_bytes, (u64)SIGNATURE_BYTES);
	u8 *buf;
	int ret;

	*result = NULL;
	buf = io_alloc(SIGNATURE_BYTES);
	if (!buf)
		return -ENOMEM;
	memset(buf, 0, SIGNATURE_BYTES);
	ret = bytes ? io_dev_pread(dev, buf, bytes, 0) : 0;
	for (u32 i = 0; i < ARRAY_SIZE(signatures) && !ret && !*result; i++) {
		const struct signature *s = &signatures[i];

		if (memcmp(buf + s->offset, s->magic, s->len) == 0)
			*result = s->name;
	}
	free(buf);
	return ret;
}
