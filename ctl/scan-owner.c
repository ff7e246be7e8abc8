// SPDX-License-Identifier: GPL-2.0-or-later
/* Whose an LV is: the names and tags of those who keep chains on LVs. */
#include "scan.h"

#include "lv-names.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

/*
 *	Proxmox VE   vm-103-disk-0.qcow2, snap_vm-103-disk-0_SNAP.qcow2; tag pve-vm-103.
 *	             The suffix, and nothing else, says that it is qcow2. del-NAME: it is
 *	             being wiped, to be removed
 *	Incus        virtual-machines_NAME.block, ..-SNAP.block; custom_NAME.block; a hyphen
 *	             of a name stands twice
 *	CloudStack   UUID, on /dev/VG/template-UUID
 *	oVirt        UUID; tags IU_image, PU_volume below, MD_slot
 *	ours         any name; tags, see include/qchain/record.h
 *
 * Incus and CloudStack have qcow2 images only in VGs that lvmlockd shares.
 */
#define PVE_SUFFIX ".qcow2"
#define INCUS_SUFFIX ".block"
#define UUID_CHARS 36u
#define OVIRT_REMOVED "_remove_me_"

static const char *const incus_types[] = { "virtual-machines_", "custom_", "images_" };

const char *scan_owner_name(enum scan_owner owner)
{
	static const char *const names[NR_OWNERS] = {
		[OWNER_UNKNOWN] = "unknown", [OWNER_QCHAIN] = "qchain",
		[OWNER_PROXMOX] = "proxmox", [OWNER_INCUS] = "incus",
		[OWNER_CLOUDSTACK] = "cloudstack", [OWNER_OVIRT] = "ovirt",
	};

	return names[owner];
}

static bool begins(const char *text, const char *with)
{
	return !strncmp(text, with, strlen(with));
}

/* @text ends with @suffix: how long it is before that; 0: it does not. */
static size_t before_suffix(const char *text, const char *suffix)
{
	size_t len = strlen(text), n = strlen(suffix);

	return len > n && !strcmp(text + len - n, suffix) ? len - n : 0;
}

static bool is_uuid(const char *text)
{
	for (u32 i = 0; i < UUID_CHARS; i++) {
		bool dash = i == 8 || i == 13 || i == 18 || i == 23;

		if (dash ? text[i] != '-' : !isxdigit((unsigned char)text[i]))
			return false;
	}
	return !text[UUID_CHARS];
}

/* ---- Proxmox VE -------------------------------------------------------------------- */

/* The length of "vm-103-disk-0" at the beginning of @text; 0: it does not begin so. */
static size_t pve_volume(const char *text)
{
	int n = 0;

	sscanf(text, "vm-%*[0-9]-disk-%*[0-9]%n", &n);
	if (!n)
		sscanf(text, "base-%*[0-9]-disk-%*[0-9]%n", &n);
	return n;
}

static bool is_pve(const struct lvm_lv *lv)
{
	const char *name = lv->name + (begins(lv->name, "snap_") ? 5 : 0);

	return record_is_foreign(lv) || (before_suffix(lv->name, PVE_SUFFIX) && pve_volume(name));
}

static void name_pve(struct scan_image *image)
{
	const char *name = image->lv->name;
	bool is_snapshot = begins(name, "snap_");
	size_t end = before_suffix(name, PVE_SUFFIX), volume;

	image->owner = OWNER_PROXMOX;
	image->says = end ? SAYS_QCOW2 : SAYS_RAW;
	name += is_snapshot ? 5 : begins(name, "del-") ? 4 : 0;
	volume = pve_volume(name);
	snprintf(image->chain_name, sizeof(image->chain_name), "%.*s",
		 (int)(volume ? volume : strcspn(name, ".")), name);
	if (is_snapshot && volume && name[volume] == '_')
		snprintf(image->snapshot, sizeof(image->snapshot), "%.*s",
			 (int)(strlen(name) - strlen(PVE_SUFFIX) - volume - 1), name + volume + 1);
}

/* ---- Incus ------------------------------------------------------------------------- */

static bool is_incus(const struct lvm_lv *lv)
{
	bool found = false;

	for (u32 i = 0; i < ARRAY_SIZE(incus_types); i++)
		found |= begins(lv->name, incus_types[i]);
	return found && before_suffix(lv->name, INCUS_SUFFIX);
}

/* Where the volume's name ends: at a hyphen that does not stand twice, or the suffix. */
static size_t incus_volume(const char *name)
{
	size_t end = before_suffix(name, INCUS_SUFFIX), at = strcspn(name, "_");

	for (; at < end; at++) {
		if (name[at] != '-')
			continue;
		if (name[at + 1] != '-')
			break;
		at++;
	}
	return min(at, end);
}

/* @len characters of @from, with hyphens as they are meant. */
static void incus_plain(const char *from, size_t len, char *to, size_t bytes)
{
	size_t n = 0;

	for (size_t i = 0; i < len && n + 1 < bytes; i++) {
		to[n++] = from[i];
		i += from[i] == '-' && from[i + 1] == '-';
	}
	to[n] = 0;
}

static void name_incus(struct scan_image *image)
{
	const char *name = image->lv->name;
	size_t volume = incus_volume(name), end = before_suffix(name, INCUS_SUFFIX);
	size_t type = strcspn(name, "_") + 1;

	image->owner = OWNER_INCUS;
	image->says = image->lv->locked ? SAYS_QCOW2 : SAYS_NOTHING;
	snprintf(image->chain_name, sizeof(image->chain_name), "%.*s", (int)type, name);
	incus_plain(name + type, volume - type, image->chain_name + type,
		    sizeof(image->chain_name) - type);
	if (volume < end)
		incus_plain(name + volume + 1, end - volume - 1, image->snapshot,
			    sizeof(image->snapshot));
}

/* ---- oVirt, CloudStack ----------------------------------------------------------------- */

/* What vdsm began to make, or to remove, and has not: its tag, "" none. */
void scan_ovirt_leftover(const struct lvm_lv *lv, char *tag, size_t bytes)
{
	char value[128];

	tag[0] = 0;
	if (lv_tag_value(lv->tags, "OVIRT_VOL_INITIALIZING", value, sizeof(value)))
		snprintf(tag, bytes, "OVIRT_VOL_INITIALIZING");
	else if (lv_tag_value(lv->tags, "IU_" OVIRT_REMOVED, value, sizeof(value)))
		snprintf(tag, bytes, "IU_" OVIRT_REMOVED "..");
}

static bool name_ovirt(struct scan_image *image)
{
	const char *tags = image->lv->tags;
	char value[128], leftover[64];
	bool has_image = lv_tag_value(tags, "IU_", value, sizeof(value));

	scan_ovirt_leftover(image->lv, leftover, sizeof(leftover));
	if (!has_image && !leftover[0])
		return false;
	image->owner = OWNER_OVIRT;
	if (has_image)
		snprintf(image->chain_name, sizeof(image->chain_name), "%s",
			 value + (begins(value, OVIRT_REMOVED) ? strlen(OVIRT_REMOVED) : 0));
	if (lv_tag_value(tags, "PU_", value, sizeof(value)))
		snprintf(image->parent, sizeof(image->parent), "%s",
			 strcmp(value, SCAN_OVIRT_NO_PARENT) ? value : "-");
	/* without a parent it may be raw */
	if (leftover[0] || (image->parent[0] && image->parent[0] != '-'))
		image->says = SAYS_QCOW2;
	return true;
}

static bool is_cloudstack(const struct lvm_lv *lv)
{
	return is_uuid(lv->name + (begins(lv->name, "template-") ? strlen("template-") : 0));
}

static void name_cloudstack(struct scan_image *image)
{
	image->owner = OWNER_CLOUDSTACK;
	image->says = image->lv->locked ? SAYS_QCOW2 : SAYS_NOTHING;
}

/* ---- ours ------------------------------------------------------------------------------- */

/* What a record says of it; its owner stays the one who has named it. */
static void name_recorded(const struct device_record *record, struct scan_image *image)
{
	const struct record_snapshot *s = device_record_by_image(record, image->lv->uuid);
	bool is_ours = s || !strcmp(record->top, image->lv->uuid) ||
		       !strcmp(record->revert.overlay, image->lv->uuid) ||
		       device_record_is_dead(record, image->lv->uuid);

	if (!is_ours)
		return;
	snprintf(image->device, sizeof(image->device), "%s", record->name);
	image->says = SAYS_QCOW2;
	if (s)
		snprintf(image->snapshot, sizeof(image->snapshot), "%s", s->name);
}

static void name_ours(const struct record_place *place, struct scan_image *image)
{
	char value[QC_MAX_CHAIN_NAME + 1];

	for (u32 i = 0; i < place->nr_records; i++)
		name_recorded(&place->records[i], image);
	if (!image->device[0] &&
	    lv_tag_value(image->lv->tags, "qchain.new=", value, sizeof(value)))
		snprintf(image->device, sizeof(image->device), "%s", value);
	if (!image->device[0] || image->owner != OWNER_UNKNOWN)
		return;
	image->owner = OWNER_QCHAIN;
	snprintf(image->chain_name, sizeof(image->chain_name), "%s", image->device);
}

void scan_name_image(const struct record_place *place, struct scan_image *image)
{
	if (is_pve(image->lv))
		name_pve(image);
	else if (is_incus(image->lv))
		name_incus(image);
	else if (!name_ovirt(image) && is_cloudstack(image->lv))
		name_cloudstack(image);
	name_ours(place, image);
}

bool scan_current_name(const struct scan_image *image, char *name, size_t bytes)
{
	const char *lv = image->lv->name;

	if (image->owner == OWNER_PROXMOX && image->snapshot[0] && begins(lv, "snap_"))
		return snprintf(name, bytes, "%s" PVE_SUFFIX, image->chain_name) < (int)bytes;
	if (image->owner == OWNER_INCUS && image->snapshot[0])
		return snprintf(name, bytes, "%.*s" INCUS_SUFFIX, (int)incus_volume(lv),
				lv) < (int)bytes;
	return false;
}
