-- How much of the frame after the cursor was stored at a takeover.
ALTER TABLE logweir_takeover ADD COLUMN digest BLOB;
