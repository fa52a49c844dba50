/*
 * impl.h - the tables that unicode/data.c gives to unicode/form.c.
 */
#ifndef MOE_UNICODE_IMPL_H
#define MOE_UNICODE_IMPL_H

extern const char unicode_canonical[];
extern const char unicode_compatible[];
extern const char unicode_classes[];
extern const char unicode_lowercase[];
extern const char unicode_stand_ins[];

#endif /* MOE_UNICODE_IMPL_H */
